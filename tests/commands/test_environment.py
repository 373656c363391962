"""A script that another Python starts says in one line how to activate the project's environment."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.source_tree import ROOT, SRC


def benchmarks() -> list[Path]:
    """Return the benchmarks that are typed by hand; an adopted project may have none."""
    documents = [ROOT / "README.md", *(ROOT / "benchmarks").glob("*.mk"), *sorted((ROOT / "docs").glob("*.md"))]
    text = "\n".join(path.read_text(encoding="utf-8") for path in documents)
    names = {*re.findall(r"python (benchmarks/\w+\.py)", text)}
    # The loop that the others are compared with knows nothing of this project.
    scripts = [ROOT / name for name in sorted(names - {"benchmarks/tutorial_loop.py"})]
    return [script for script in scripts if script.is_file()]


@pytest.mark.parametrize("script", [*sorted(SRC.glob("*.py")), *benchmarks()], ids=lambda path: path.stem)
def test_a_python_without_the_packages_is_told_what_to_type(script: Path) -> None:
    # Without site-packages, as the system's Python.
    ended = subprocess.run([sys.executable, "-E", "-S", "-B", str(script)], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1 and " has no package hydra: " in ended.stderr
    assert "bin/activate`" in ended.stderr
