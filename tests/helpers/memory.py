"""Measure the memory of the stages that a command starts."""

import re
import time
from collections import defaultdict
from pathlib import Path

import psutil

from helpers.workspace import Command


def peaks(command: Command) -> dict[str, int]:
    """The most anonymous memory that each stage's process had, in bytes, once all have ended."""
    found: dict[str, int] = defaultdict(int)
    root = psutil.Process(command.process.pid)
    while command.process.poll() is None:
        try:
            for process in (root, *root.children(recursive=True)):
                stage = re.search(r"src/(\w+)\.py", " ".join(process.cmdline()))
                anonymous = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text("utf-8"))
                if stage and anonymous:
                    found[stage[1]] = max(found[stage[1]], int(anonymous[1]) * 1024)
        except (psutil.NoSuchProcess, OSError):
            pass  # it has ended meanwhile
        time.sleep(0.05)
    return dict(found)
