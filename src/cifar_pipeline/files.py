"""Files and folders that change as a whole: whoever looks sees the old content or the new, never half of either.

The partial content lies in a hidden sibling, so that a rename suffices, and outside what DVC takes as a stage's output.
Links stay as they are: what they lead to is replaced. Streams and devices are written into.
"""

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from cifar_pipeline.console import Refusal
from cifar_pipeline.locks import claimed, is_claimed_name, old_name, remove, token_of
from cifar_pipeline.locks import is_busy as is_busy
from cifar_pipeline.locks import only_one as only_one
from cifar_pipeline.locks import only_one_if_free as only_one_if_free
from cifar_pipeline.places import is_mount, is_stream, mounts, real_path, write_into

# What lets two names change places in one step: the function, and what stands before each path and behind both.
EXCHANGES = {"linux": ("renameat2", (ctypes.c_int(-100),), 2), "darwin": ("renamex_np", (), 2)}
# How a system refuses to rename a mount point, or a folder of a container's image.
KEPT_IN_PLACE = {errno.EBUSY, errno.EXDEV}
FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; what was written there takes the name `path` when the block ends well.

    Threads and processes may write the same `path` at once: the last one's content stays. What is written for a stream,
    a FIFO or a device goes there when the block ends well.
    """
    if is_stream(path):
        with TemporaryDirectory(prefix="part-") as place:
            part = Path(place) / f"part{path.suffix}"
            yield part
            write_into(path, part)
        return
    target = real_path(path)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    with claimed(target, target.parent) as part:
        yield part
        _sync(part)
        part.replace(target)
        _sync(target.parent)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; when the block ends well, it takes the name and the place of `path`.

    A mount point keeps its place: its entries are replaced one by one.
    """
    with _staged(path) as (target, part):
        yield part
        for file in part.rglob("*"):
            _sync(file)
        _sync(part)
        names = {file.name for file in part.iterdir()}
        if part.parent == target or not _put(part, target):
            _replace_entries(part, target, names)
            for old in target.iterdir():
                if old.name not in names and not is_claimed_name(old.name):
                    remove(old)
            _sync(target)
        _sync(target.parent)


@contextmanager
def whole_files(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; the files in it when the block ends well go to `folder`, over those of their names.

    What else is in `folder` stays. All change at once: `folder` is exchanged for one that has the others as well. In a
    mount point they are replaced one by one.
    """
    with _staged(folder) as (target, part):
        yield part
        names = {file.name for file in part.iterdir()}
        for name in names:
            _sync(part / name)
        target.mkdir(parents=True, exist_ok=True)
        if part.parent != target:
            _take_along(target, part)
            _sync(part)
        if part.parent == target or not _put(part, target):
            _replace_entries(part, target, names)
            _sync(target)
        _sync(target.parent)


def require_writable(path: Path, is_file: bool = False) -> None:
    """Refuse, before any work, a folder (or file) that could not be replaced when the work is done."""
    wanted, other = ("file", "folder") if is_file else ("folder", "file")
    try:
        target = real_path(path)
    except OSError:
        raise Refusal(f"{path} is a link that leads to itself: remove it (`rm {path}`).") from None
    if is_stream(path) and is_file:
        if not os.access(path, os.W_OK):
            raise Refusal(f"{path} may not be written to: allow it (`chmod u+w {path}`).")
        return
    if target.exists() and target.is_dir() == is_file:
        raise Refusal(f"{path} is a {other}, and a {wanted} goes there: move it away, or name another {wanted}.")
    parent = next(folder for folder in target.parents if folder.exists())
    if not parent.is_dir():
        raise Refusal(f"{parent} is no folder, and {target} goes there: move it away.")
    locked = next((place for place in (parent, target) if place.exists() and not os.access(place, os.W_OK)), None)
    if locked is not None:
        raise Refusal(f"{locked} may not be written to, and the result goes there: allow it (`chmod u+w {locked}`).")
    if is_file and is_mount(target):
        raise Refusal(
            f"{target} is mounted by itself, and such a file can't be replaced as a whole: mount its folder instead."
        )
    below = sorted(place for place in mounts() if target in place.parents)
    if below:
        raise Refusal(f"{target} is replaced as a whole, but {below[0]} in it is a mount point: unmount that.")
    _try_exchange(target, target if is_mount(target) else parent)


def _try_exchange(target: Path, place: Path) -> None:
    """Do with empty folders what will be done with `target`, and refuse what the file system refuses."""
    try:
        with claimed(target, place) as probe:
            for name in ("new", "old"):
                (probe / name).mkdir(parents=True)
            _swap(probe / "new", probe / "old")
    except OSError as error:
        if error.errno in FULL:
            raise
        raise Refusal(
            f"{place} does not let a new {target.name} take the place of the old one ({error.strerror}): make it "
            f"writable, or let {target.name} be a link to a folder elsewhere."
        ) from None


@contextmanager
def _staged(path: Path) -> Iterator[tuple[Path, Path]]:
    """Yield where a folder really is, and an empty one that is going to take its place: within it, if it is mounted."""
    target = real_path(path)
    place = target if is_mount(target) else target.parent
    place.mkdir(parents=True, exist_ok=True)
    with claimed(target, place) as part:
        part.mkdir()
        yield target, part


def _put(part: Path, target: Path) -> bool:
    """Let `part` become `target`, and `part` what was there before; False where `target` can't be renamed."""
    while True:
        try:
            if target.exists():
                _exchange(part, target)
            else:
                part.rename(target)
            return True
        except OSError as error:
            if error.errno in KEPT_IN_PLACE:
                return False
            # Another process has made or removed it meanwhile.
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST) or not part.exists():
                raise


def _exchange(new: Path, path: Path) -> None:
    """Let a folder that `claimed` named take the place of another, and that one its own."""
    _swap(new, path)


def _swap(new: Path, path: Path) -> None:
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
    old = old_name(path, token_of(new)) if is_claimed_name(new.name) else path.with_name(f"{path.name}.old")
    path.rename(old)
    new.rename(path)
    old.rename(new)


def _replace_entries(part: Path, folder: Path, names: Iterable[str]) -> None:
    """Move the entries of `part` to their names in `folder`, one file after the other.

    Folders are gone through, because those of a container's image can't be renamed.
    """
    for new in sorted(part / name for name in names):
        old = folder / new.name
        if new.is_dir() and not new.is_symlink():
            if not old.is_dir() or old.is_symlink():
                remove(old)
                old.mkdir()
            inner = {file.name for file in new.iterdir()}
            _replace_entries(new, old, inner)
            for file in old.iterdir():
                if file.name not in inner:
                    remove(file)
            _sync(old)
        else:
            if old.is_dir() and not old.is_symlink():
                remove(old)
            new.replace(old)


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


def _sync(path: Path) -> None:
    # A rename can outlive a power cut that the renamed bytes did not, unless they were forced to the disk before.
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
