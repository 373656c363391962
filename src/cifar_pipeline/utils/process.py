"""What ends a process from outside: Ctrl-C, SIGTERM, and the death of the process that started it.

What memory costs in time: how often Python looks for garbage, and whether freed memory stays with the process.
"""

import atexit
import ctypes
import faulthandler
import functools
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

POLL_SECONDS = 0.5
# How long a stopped process may take to end its run and to release its locks, before it is ended without that.
GRACE_SECONDS = 4.2
# The same where even the thread that ends it can't run, because a library keeps Python's lock.
SECONDS_WITHOUT_PYTHON = 4.8
UNCLEAN = "Stopped, before everything was ended in order: the next command does the rest.\n"


class Interrupted(SystemExit):
    """Somebody stopped the work: exit code 130 for Ctrl-C, 143 for SIGTERM, and a line where more is known."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(128 + number)
        self.message = message


# Whether there is a thread that sees signals, and whether a person was told that the command was stopped.
_is_watched = False
_was_told = False
# Whether what this process has started is told of a SIGTERM: a terminal tells all of a Ctrl-C.
_passes_on = False


def install_sigterm_handler() -> None:
    """Let SIGTERM raise `Interrupted`, so that runs, locks and half-written files are left as after Ctrl-C.

    Within five seconds of either the process has ended, whatever its threads wait for.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _raise)
        _watch_signals()


def told() -> None:
    """Note that there was a line about the interruption."""
    global _was_told
    _was_told = True


def pass_on() -> None:
    """Send a SIGTERM to the processes that this one has started as well, as to the workers of a sweep."""
    global _passes_on
    _passes_on = True


def _watch_signals() -> None:
    """Start a thread that sees a signal at once, also while the main one is in a library's code or waits for a lock."""
    global _is_watched
    if _is_watched:
        return
    _is_watched = True
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget_pipe)
    threading.Thread(target=_end_in_time, args=(reading,), name="signals", daemon=True).start()


def _forget_pipe() -> None:
    """In a forked process, leave its parent's pipe alone: a signal to this one is none to that one."""
    global _is_watched
    _is_watched = False
    with suppress(ValueError):  # forked by a thread
        signal.set_wakeup_fd(-1)


def _end_in_time(pipe: int) -> None:
    """End this process, and what it has started, if it still runs so long after the first signal to stop."""
    number = 0
    with Path(os.devnull).open("w") as nowhere:
        while number not in (signal.SIGTERM, signal.SIGINT):
            number = os.read(pipe, 1)[0]
        faulthandler.dump_traceback_later(SECONDS_WITHOUT_PYTHON, exit=True, file=nowhere)
        if _passes_on and number == signal.SIGTERM:
            _signal_descendants(signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        if not _was_told:
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, UNCLEAN.encode())
        _signal_descendants(signal.SIGKILL)
        os._exit(128 + number)


def _signal_descendants(number: int) -> None:
    with suppress(psutil.Error):
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                process.send_signal(number)


def _raise(number: int, _: Any) -> None:
    signal.signal(number, signal.SIG_IGN)  # Once is enough: a second one would break off the clearing up.
    raise Interrupted(number)


def exit_when_dvc_dies() -> None:
    """Stop this process when the `dvc` that started it is gone: a killed one leaves its stages running."""
    if "DVC_STAGE" in os.environ:
        _watch_ancestor(_is_dvc)


@functools.cache  # a launcher's process takes one job after the other
def exit_when_process_dies(process_id: int) -> None:
    """Stop this process when that one is gone, if it is what started this one, directly or not."""
    _watch_ancestor(lambda process: process.pid == process_id)


def _is_dvc(process: psutil.Process) -> bool:
    try:
        return any(Path(word).stem == "dvc" for word in process.cmdline()[:3])
    except psutil.Error:
        return False


def _watch_ancestor(wanted: Callable[[psutil.Process], bool]) -> None:
    """Stop this process when the nearest such ancestor, or one between them, is gone; without one it never is."""
    ancestors = psutil.Process().parents()
    places = (place for place, process in enumerate(ancestors) if wanted(process))
    if (place := next(places, None)) is not None:
        _end_with(ancestors[: place + 1])


def _end_with(processes: Iterable[psutil.Process]) -> None:
    """Send this process a SIGTERM as soon as one of these has ended, and end it where that is not enough."""

    def watch() -> None:
        while all(map(_is_alive, processes)):
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        # A launcher's process takes the end of its job for the job's answer, and waits for another one.
        time.sleep(GRACE_SECONDS)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _is_alive(process: psutil.Process) -> bool:
    try:
        # A process that has ended is a zombie until its own parent asks for its exit code.
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


# mallopt's numbers for what follows, from glibc's malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
TRIM_THRESHOLD_BYTES = 2**31 - 1
TOP_PAD_BYTES = 64 * 2**20

# Objects made beyond those freed, after which Python looks for cycles among them; 700 by default.
GC_THRESHOLD = 50_000


@functools.cache
def relax_gc() -> None:
    """Let Python look for garbage in cycles less often: while libraries are imported it finds none, again and again.

    Looking for it is a fifth of the time that torch, Lightning and MLflow take to be imported, and nearly all of what a
    process that has imported them takes to end: there it would go through all of them once more, to free what the
    system frees anyway.
    """
    gc.set_threshold(GC_THRESHOLD)
    atexit.register(gc.freeze)


def disable_malloc_trim() -> None:
    """Let glibc keep what is freed. Elsewhere it does nothing.

    By default each tensor of more than 32 MiB is mapped anew and its pages are zeroed by the system one by one: a
    quarter of the time of a training step of experiment=airbench94 on a CPU.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            for option, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES), (TOP_PAD, TOP_PAD_BYTES)):
                mallopt(option, value)
