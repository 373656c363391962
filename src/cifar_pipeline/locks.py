"""Locks that say which process is at a file or folder; the system releases them when the process ends, however it ends.

A lock is an flock on a hidden file. A process number would say nothing to a process in another container.
"""

import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from cifar_pipeline.console import say
from cifar_pipeline.places import real_path

TOKEN_BYTES = 8
# The hidden names of one writer: its lock, what it has written so far, and the folder that it replaces.
CLAIMED = re.compile(r"\.(?P<name>.+)\.(?P<token>[0-9a-f]{16})\.(?P<kind>lock|old|part)(?P<suffix>\..*)?")


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Let one process at a time write to `path`; the others wait, and say so.

    DVC leaves a stage running when DVC itself is killed, and starts a second one when it is started again.
    """
    lock_file = _lock_of(path)
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"Another process is writing {path}: waiting for it to end.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def only_one_if_free(path: Path) -> Iterator[bool]:
    """Like `only_one`, without waiting: yields whether this process is the one.

    A process that holds other paths may ask: it never waits, so there is no deadlock.
    """
    lock = FileLock(_lock_of(path))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def is_busy(path: Path) -> bool:
    """Whether some process holds `only_one(path)` at this moment."""
    lock_file = _lock_of(path)
    if not lock_file.parent.is_dir():
        return False
    try:
        with FileLock(lock_file).acquire(timeout=0):
            return False
    except Timeout:
        return True


@contextmanager
def claimed(path: Path, folder: Path) -> Iterator[Path]:
    """Yield a hidden name in `folder` for a new `path`, which no other writer has; what is there at the end is removed.

    What writers of the same `path` left there when they were killed is removed first. A writer is known to be alive by
    the lock that it holds: two threads, and processes of two containers, tell each other apart.
    """
    clear_killed(path, folder)
    token = secrets.token_hex(TOKEN_BYTES)
    lock_file = folder / f".{path.name}.{token}.lock"
    part = folder / f".{path.name}.{token}.part{path.suffix}"
    lock = FileLock(lock_file)
    while True:
        lock.acquire()
        if lock_file.exists():
            break
        lock.release()  # removed by `clear_killed` between its creation and its locking
    try:
        yield part
    finally:
        remove(part)
        _remove_lock(lock, lock_file)


def clear_killed(path: Path, folder: Path) -> None:
    """Remove from `folder` what killed writers of `path` left; a folder that was being replaced gets its place back."""
    matches = [CLAIMED.fullmatch(entry.name) for entry in folder.iterdir()]
    found = [match for match in matches if match and match["name"] == path.name]
    for token in {match["token"] for match in found}:
        lock_file = folder / f".{path.name}.{token}.lock"
        lock = FileLock(lock_file)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):  # its writer is alive, or it is another user's
            continue
        old = old_name(path, token)
        try:
            if old.exists() and not path.exists():
                old.rename(path)
            for match in found:
                if match["token"] == token and match["kind"] != "lock":
                    remove(folder / match[0])
        finally:
            _remove_lock(lock, lock_file)


def old_name(path: Path, token: str) -> Path:
    """The hidden name that a folder has while another takes its place by several renames."""
    return path.with_name(f".{path.name}.{token}.old")


def token_of(part: Path) -> str:
    """The token in a name that `claimed` gave."""
    match = CLAIMED.fullmatch(part.name)
    assert match is not None
    return match["token"]


def is_claimed_name(name: str) -> bool:
    """Whether a hidden file or folder of this name is a writer's."""
    return CLAIMED.fullmatch(name) is not None


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_lock(lock: FileLock, lock_file: Path) -> None:
    with suppress(OSError):  # Windows removes no open file
        lock_file.unlink(missing_ok=True)
    lock.release()


def _lock_of(path: Path) -> Path:
    target = real_path(path)
    return target.with_name(f".{target.name}.lock")
