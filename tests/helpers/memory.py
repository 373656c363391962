"""Measure the memory of the stages that a command starts."""

import re
import sys
import time
from collections import defaultdict

import psutil

from helpers.source_tree import ROOT
from helpers.workspace import Command

sys.path.append(str(ROOT / "benchmarks"))

from common import anonymous_bytes


def peaks(command: Command) -> dict[str, int]:
    """The most anonymous memory that each stage's process had, in bytes, once all have ended."""
    found: dict[str, int] = defaultdict(int)
    root = psutil.Process(command.process.pid)
    while command.process.poll() is None:
        try:
            for process in (root, *root.children(recursive=True)):
                stage = re.search(r"src/(\w+)\.py", " ".join(process.cmdline()))
                if stage:
                    found[stage[1]] = max(found[stage[1]], anonymous_bytes(process.pid))
        except (psutil.NoSuchProcess, OSError):
            pass  # it has ended meanwhile
        time.sleep(0.05)
    return dict(found)
