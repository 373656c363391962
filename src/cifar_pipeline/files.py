"""Files and folders that change as a whole: whoever looks sees the old content or the new, never half of either.

The partial content lies in a hidden sibling, so that a rename suffices, and outside what DVC takes as a stage's output.
"""

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from cifar_pipeline.console import Refusal, say


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; what was written there takes the name `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part{path.suffix}")
    _clear_killed(path)
    try:
        yield part
        _sync(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; when the block ends well, it takes the name and the place of `path`.

    Only one process at a time may write to `path` (`only_one`). What a killed one left behind is cleared away first.
    """
    part, old = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        old.rename(path)  # Killed between the two renames below.
    for left_over in (part, old):
        shutil.rmtree(left_over, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        for file in part.rglob("*"):
            _sync(file)
        _sync(part)
        if path.exists():
            path.rename(old)
        part.rename(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def whole_files(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; the files in it when the block ends well go to `folder`, over those of their names.

    Nothing of `folder` has changed until all are written; then it takes a rename for each.
    """
    part = folder.with_name(f".{folder.name}.files")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        for file in part.iterdir():
            _sync(file)
        folder.mkdir(exist_ok=True)
        for file in part.iterdir():
            file.replace(folder / file.name)
        _sync(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def require_writable(path: Path) -> None:
    """Refuse, before any work, a file or folder that could not be replaced when the work is done."""
    path = path.absolute()
    parent = next(folder for folder in path.parents if folder.exists())
    locked = next((place for place in (parent, path) if place.exists() and not os.access(place, os.W_OK)), None)
    if locked is not None:
        raise Refusal(f"{locked} may not be written to, and the result goes there: allow it (`chmod u+w {locked}`).")


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Let one process at a time write to `path`; the others wait, and say so.

    DVC leaves a stage running when DVC itself is killed, and starts a second one when it is started again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_lock_of(path))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"Another process is writing {path}: waiting for it to end.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def is_busy(path: Path) -> bool:
    """Whether some process holds `only_one(path)` at this moment."""
    if not path.parent.is_dir():
        return False
    try:
        with FileLock(_lock_of(path)).acquire(timeout=0):
            return False
    except Timeout:
        return True


def _clear_killed(path: Path) -> None:
    """Remove what processes that were killed had written of `path`."""
    for left_over in path.parent.glob(f".{glob.escape(path.name)}.*.part{glob.escape(path.suffix)}"):
        number = left_over.name.removeprefix(f".{path.name}.").partition(".")[0]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            left_over.unlink(missing_ok=True)


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _sync(path: Path) -> None:
    # A rename can outlive a power cut that the renamed bytes did not, unless they were forced to the disk before.
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
