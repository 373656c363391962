"""Folders that change as a whole: whoever looks sees the old content or the new, never half of either.

The partial content lies in a hidden sibling (`data/.raw.new`), on the same file system so that a rename suffices, and
outside the folder that DVC takes as a stage's output.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cifar_pipeline.console import say


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `folder` when the block ends without an exception.

    One process at a time: a second one waits, since DVC leaves a stage running when DVC itself is killed. What a killed
    process left behind is cleared away first.
    """
    from filelock import FileLock, Timeout

    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_sibling(folder, "lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"Another process is writing {folder}; waiting for it.")
        lock.acquire()
    try:
        with staged(folder) as new:
            yield new
    finally:
        lock.release()


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """As `replaced`, for a folder that no other process writes."""
    new, old = _sibling(folder, "new"), _sibling(folder, "old")
    if not folder.exists() and old.exists():
        os.rename(old, folder)  # killed between the two renames below
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        _sync_tree(new)
        if folder.exists():
            os.rename(folder, old)
        os.rename(new, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _sibling(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{ending}")


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    # A rename can outlive a power cut that the renamed bytes did not, unless they were forced to the disk before.
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
