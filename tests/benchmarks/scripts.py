"""The scripts of benchmarks/ as a person starts them."""

import subprocess
import sys

from helpers.config_project import ROOT


def output_of(script: str, *arguments: str) -> str:
    """What benchmarks/`script`.py prints on its standard output, once it has ended well."""
    command = [sys.executable, f"benchmarks/{script}.py", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout
