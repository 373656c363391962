"""Files and folders that change as a whole: whoever looks sees the old content or the new, never half of either.

The partial content lies in a hidden sibling, so that a rename suffices, and outside what DVC takes as a stage's output.
"""

import ctypes
import errno
import glob
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from cifar_pipeline.console import Refusal, say

# What lets two names change places in one step: the function, and what stands before each path and behind both.
EXCHANGES = {"linux": ("renameat2", (ctypes.c_int(-100),), 2), "darwin": ("renamex_np", (), 2)}
# A folder that another disk is mounted on keeps its place, as a container's may be.
MOUNTED = {errno.EBUSY, errno.EXDEV}


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
        _sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; when the block ends well, it takes the name and the place of `path`.

    Only one process at a time may write to `path` (`only_one`). What a killed one left behind is cleared away first.
    """
    part = _emptied(path, "part")
    try:
        yield part
        for file in part.rglob("*"):
            _sync(file)
        _sync(part)
        if path.exists():
            _exchange(part, path)
        else:
            part.rename(path)
        _sync(path.parent)
    finally:
        _remove(part)


@contextmanager
def whole_files(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; the files in it when the block ends well go to `folder`, over those of their names.

    What else is in `folder` stays. All change at once: `folder` is exchanged for one that has the others as well.
    """
    part = _emptied(folder, "files")
    try:
        yield part
        new = list(part.iterdir())
        for file in new:
            _sync(file)
        folder.mkdir(exist_ok=True)
        try:
            _take_along(folder, part)
            _sync(part)
            _exchange(part, folder)
        except OSError as error:
            if error.errno not in MOUNTED:
                raise
            for file in new:
                file.replace(folder / file.name)
            _sync(folder)
        _sync(folder.parent)
    finally:
        _remove(part)


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


def _exchange(new: Path, path: Path) -> None:
    """Let two folders change places: in one step where the system has one, by three renames where it has not."""
    name, before, behind = EXCHANGES.get(sys.platform, ("", (), 0))
    exchange = getattr(ctypes.CDLL(None, use_errno=True), name, None) if name else None
    if exchange is not None:
        one, other = ctypes.c_char_p(os.fsencode(new)), ctypes.c_char_p(os.fsencode(path))
        if not exchange(*before, one, *before, other, ctypes.c_uint(behind)):
            return
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # what a file system without it says
            raise OSError(number, os.strerror(number), str(path))
    old = _hidden(path, "old")
    path.rename(old)
    new.rename(path)
    old.rename(new)


def _take_along(folder: Path, part: Path) -> None:
    """Give `part` whatever `folder` has and `part` has not, by links where the file system has them."""
    mine = {path.name for path in part.iterdir()}

    def given(inside: str, names: list[str]) -> set[str]:
        return mine & set(names) if Path(inside) == folder else set()

    shutil.copytree(folder, part, symlinks=True, ignore=given, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _emptied(path: Path, kind: str) -> Path:
    """A new folder beside `path`, once what a killed process left there is put back or cleared away."""
    part, old = _hidden(path, kind), _hidden(path, "old")
    if old.exists() and not path.exists():
        old.rename(path)  # Killed between the renames of `_exchange`, where it needs several.
    for left_over in (part, old):
        _remove(left_over)
    part.mkdir(parents=True)
    return part


def _hidden(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}")


def _remove(path: Path) -> None:
    """Remove a folder, or a link to one."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


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
