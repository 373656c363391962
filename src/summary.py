"""What `make` prints last: which data, how good, how long, where to look."""

import sys
from pathlib import Path

from cifar_pipeline.reporting.summary import show_summary
from cifar_pipeline.utils.console import log_error
from cifar_pipeline.utils.errors import UserError

if __name__ == "__main__":
    try:
        show_summary(Path.cwd())
    except UserError as refusal:
        log_error(str(refusal))
        sys.exit(2)
