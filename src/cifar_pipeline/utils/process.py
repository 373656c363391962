"""Manage the process: end it in time on Ctrl-C, SIGTERM or a parent's death, and tune its memory management.

Memory: how often Python's garbage collector runs, and whether glibc returns freed memory to the system.
"""

import atexit
import ctypes
import faulthandler
import functools
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

POLL_SECONDS = 0.5
# Seconds that a stopped process gets to end its MLflow run and to release its locks before it is killed.
GRACE_SECONDS = 4.2
# The same where the thread that ends it cannot run, because a library holds the GIL.
GIL_GRACE_SECONDS = 4.8
# Seconds between two attempts to interrupt while torch is imported, which takes about one.
RETRY_SECONDS = 0.05
UNCLEAN = "Stopped before the cleanup was complete: the next command completes it.\n"


class Interrupted(SystemExit):
    """Exit on a signal: code 130 for Ctrl-C, 143 for SIGTERM; `message` replaces the default message, if set."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(128 + number)
        self.message = message


# Whether the signal thread runs, and whether a line about the interruption was printed.
_is_watched = False
_is_reported = False
# Whether SIGTERM is sent to child processes as well. (A terminal sends Ctrl-C to all of them.)
_forwards_sigterm = False
_observer: Callable[[], None] | None = None
# torchrun's run id of the ranks that a command launches for itself.
LAUNCH_ID = "cifar-pipeline"


def install_signal_handlers() -> None:
    """Let SIGTERM raise `Interrupted`, so that runs, locks and temporary files are cleaned up as after Ctrl-C.

    While torch is imported, both signals wait for the end of that. The process ends within five seconds of either
    signal, whatever its threads wait for.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _raise)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where Ctrl-C is ignored
            signal.signal(signal.SIGINT, _raise)
        _watch_signals()


def find_interruption(error: BaseException | None) -> Interrupted | None:
    """Return the Ctrl-C or SIGTERM that led to an error; None if there was none.

    A library that writes the end of its file while the exception passes may fail at that, as torch.save does, and then
    raises an error of its own with the interruption as its context.
    """
    while error is not None:
        if isinstance(error, Interrupted):
            return error
        if isinstance(error, KeyboardInterrupt):
            return Interrupted(signal.SIGINT)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def mark_reported() -> None:
    """Record that a line about the interruption was printed."""
    global _is_reported
    _is_reported = True


def is_reported_by_launcher() -> bool:
    """Return whether this is a rank that a command launched for itself, which reports signals and killed ranks."""
    return os.environ.get("TORCHELASTIC_RUN_ID") == LAUNCH_ID


def observe_signals(observer: Callable[[], None] | None) -> None:
    """Call `observer` as soon as SIGTERM or Ctrl-C arrives, even while the main thread runs native code; None: none."""
    global _observer
    _observer = observer


def forward_sigterm() -> None:
    """Send SIGTERM to child processes as well, such as the workers of a sweep."""
    global _forwards_sigterm
    _forwards_sigterm = True


def _watch_signals() -> None:
    """Start a thread that receives signals at once, even while the main thread runs native code or waits for a lock."""
    global _is_watched
    if _is_watched:
        return
    _is_watched = True
    reading, writing = os.pipe()
    if hasattr(os, "set_blocking"):  # not on Windows before Python 3.12
        os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget_pipe)
    threading.Thread(target=_end_in_time, args=(reading,), name="signals", daemon=True).start()


def _forget_pipe() -> None:
    """Detach a forked process from its parent's pipe, so that its signals do not end the parent."""
    global _is_watched
    _is_watched = False
    with suppress(ValueError):  # forked by a thread
        signal.set_wakeup_fd(-1)


def _end_in_time(pipe: int) -> None:
    """Wait for a signal, then kill this process and its children if it still runs after `GRACE_SECONDS`."""
    number = 0
    with Path(os.devnull).open("w", encoding="utf-8") as devnull:
        while number not in (signal.SIGTERM, signal.SIGINT):
            number = os.read(pipe, 1)[0]
        faulthandler.dump_traceback_later(GIL_GRACE_SECONDS, exit=True, file=devnull)
        if _observer:
            _observer()
        if _forwards_sigterm and number == signal.SIGTERM:
            _for_descendants(psutil.Process.terminate)
        time.sleep(GRACE_SECONDS)
        if not _is_reported:
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, UNCLEAN.encode())
        _for_descendants(psutil.Process.kill)
        os._exit(128 + number)


def _for_descendants(end: Callable[[psutil.Process], None]) -> None:
    with suppress(psutil.Error):
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                end(process)


def end_process_tree(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to a child process, and kill it and its own children if it still runs after some seconds."""
    with suppress(psutil.Error):
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        for child in psutil.wait_procs(children, timeout=GRACE_SECONDS / 2)[1]:
            with suppress(psutil.Error):
                child.kill()
    process.wait()


def _raise(number: int, frame: FrameType | None) -> None:
    if _is_importing_torch(frame) and hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, lambda _, later: _raise(number, later))
        signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)
        return
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    signal.signal(number, signal.SIG_IGN)  # a second signal would interrupt the cleanup
    raise Interrupted(number)


def _is_importing_torch(frame: FrameType | None) -> bool:
    """Return whether a module of torch is being executed.

    An exception that passes its C++ code would abort the process.
    """
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__", "").partition(".")[0] == "torch":
            return True
        frame = frame.f_back
    return False


def exit_when_dvc_dies() -> None:
    """End this process when the `dvc` that started it ends: a killed DVC leaves its stages running."""
    if "DVC_STAGE" in os.environ:
        _watch_ancestor(_is_dvc)


@functools.cache  # a launcher's worker runs many jobs
def exit_when_process_dies(process_id: int) -> None:
    """End this process when its ancestor with this id ends; other ids have no effect."""
    _watch_ancestor(lambda process: process.pid == process_id)


def _is_dvc(process: psutil.Process) -> bool:
    try:
        return any(Path(word).stem == "dvc" for word in process.cmdline()[:3])
    except psutil.Error:
        return False


def _watch_ancestor(matches: Callable[[psutil.Process], bool]) -> None:
    """End this process when the nearest matching ancestor, or one in between, ends."""
    ancestors = psutil.Process().parents()
    indices = (index for index, process in enumerate(ancestors) if matches(process))
    if (index := next(indices, None)) is not None:
        _end_with(ancestors[: index + 1])


def _end_with(processes: Iterable[psutil.Process]) -> None:
    """Send SIGTERM to this process as soon as one of `processes` ends, and kill it after `GRACE_SECONDS`."""

    def watch() -> None:
        while all(map(is_alive, processes)):
            time.sleep(POLL_SECONDS)
        _send_sigterm()
        # A launcher's worker treats the exit of its job as the job's result, and waits for another job.
        time.sleep(GRACE_SECONDS)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _send_sigterm() -> None:
    """Send SIGTERM to this process."""
    if sys.platform == "win32":  # where os.kill ends a process at once, without its handler
        signal.raise_signal(signal.SIGTERM)
    else:
        os.kill(os.getpid(), signal.SIGTERM)


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that has ended does not, even if its exit code was not read yet."""
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


# Parameter numbers of mallopt, from glibc's malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
TRIM_THRESHOLD_BYTES = 2**31 - 1
TOP_PAD_BYTES = 64 * 2**20

# Allocations minus deallocations that trigger a collection; 700 by default.
GC_THRESHOLD = 50_000


@functools.cache
def relax_gc() -> None:
    """Run Python's cyclic garbage collector less often.

    It takes a fifth of the import time of torch, Lightning and MLflow, without finding garbage, and nearly all of the
    exit time of a process that has imported them, to free what the system frees anyway.
    """
    gc.set_threshold(GC_THRESHOLD)
    atexit.register(gc.freeze)


def disable_malloc_trim() -> None:
    """Let glibc keep freed memory in the process; no effect on other systems.

    By default each tensor of more than 32 MiB is newly mapped and the system zeroes its pages one by one: a quarter of
    the time of a training step of experiment=airbench94 on a CPU.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            for option, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES), (TOP_PAD, TOP_PAD_BYTES)):
                mallopt(option, value)
