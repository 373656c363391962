"""Run the scripts of benchmarks/."""

import subprocess
import sys

from helpers.config_project import ROOT


def output_of(script: str, *arguments: str) -> str:
    """Run benchmarks/`script`.py and return its standard output."""
    command = [sys.executable, f"benchmarks/{script}.py", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout
