"""What `make` prints last: which data, how good, how long, where to look."""

import sys
from pathlib import Path

from cifar_pipeline.console import Refusal, complain
from cifar_pipeline.reporting.summary import show_summary

if __name__ == "__main__":
    try:
        show_summary(Path.cwd())
    except Refusal as refusal:
        complain(str(refusal))
        sys.exit(2)
