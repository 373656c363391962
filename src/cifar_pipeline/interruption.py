"""What ends a process from outside: Ctrl-C, SIGTERM, and the death of the process that started it."""

import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

SECONDS_BETWEEN = 0.5
# How long a process whose starter is gone may take to clear up.
SECONDS_TO_END = 10


class Interrupted(SystemExit):
    """Somebody stopped the work: exit code 130 for Ctrl-C, 143 for SIGTERM, and a line where more is known."""

    def __init__(self, number: int, line: str = "") -> None:
        super().__init__(128 + number)
        self.line = line


def listen() -> None:
    """Let SIGTERM raise `Interrupted`, so that runs, locks and half-written files are left as after Ctrl-C."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _raise)


def _raise(number: int, _: Any) -> None:
    signal.signal(number, signal.SIG_IGN)  # Once is enough: a second one would break off the clearing up.
    raise Interrupted(number)


def end_with_dvc() -> None:
    """Stop this process when the `dvc` that started it is gone: a killed one leaves its stages running."""
    if "DVC_STAGE" in os.environ:
        _end_with_ancestor(_is_dvc)


@functools.cache  # a launcher's process takes one job after the other
def end_with(process_id: int) -> None:
    """Stop this process when that one is gone, if it is what started this one, directly or not."""
    _end_with_ancestor(lambda process: process.pid == process_id)


def _is_dvc(process: psutil.Process) -> bool:
    try:
        return any(Path(word).stem == "dvc" for word in process.cmdline()[:3])
    except psutil.Error:
        return False


def _end_with_ancestor(wanted: Callable[[psutil.Process], bool]) -> None:
    """Stop this process when the nearest such ancestor, or one between them, is gone; without one it never is."""
    ancestors = psutil.Process().parents()
    places = (place for place, process in enumerate(ancestors) if wanted(process))
    if (place := next(places, None)) is not None:
        _end_with(ancestors[: place + 1])


def _end_with(processes: Iterable[psutil.Process]) -> None:
    """Send this process a SIGTERM as soon as one of these has ended, and end it where that is not enough."""

    def watch() -> None:
        while all(map(_lives, processes)):
            time.sleep(SECONDS_BETWEEN)
        os.kill(os.getpid(), signal.SIGTERM)
        # A launcher's process takes the end of its job for the job's answer, and waits for another one.
        time.sleep(SECONDS_TO_END)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _lives(process: psutil.Process) -> bool:
    try:
        # A process that has ended is a zombie until its own parent asks for its exit code.
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
