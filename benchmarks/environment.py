"""Exit with one line that says how to activate the environment, if this Python lacks the project's packages.

Benchmarks that are typed by hand import it first.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import cifar_pipeline.cli.entrypoint  # noqa: F401
