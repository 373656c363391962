"""Files and folders that change as a whole: whoever looks sees the old content or the new, never half of either.

The partial content lies in a hidden sibling, so that a rename suffices, and outside what DVC takes as a stage's output.
Links stay as they are: what they lead to is replaced. Streams and devices are written into.

Where a path leads: links followed, streams and devices told from files, mount points from folders.

Locks that say which process is at a file or folder; the system releases them when the process ends, however it ends.

A lock is an flock on a hidden file. A process number would say nothing to a process in another container.
"""

import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from filelock import FileLock, Timeout

from cifar_pipeline.utils.console import info
from cifar_pipeline.utils.errors import UserError

# The folders whose names are open files of a process, as /dev/stdout is a link to one.
DESCRIPTORS = re.compile(r"/proc/(self|thread-self|\d+)(/task/\d+)?/fd|/dev/fd")
# A file that DVC has linked from its cache: what the link leads to is the only copy of an older result.
IN_DVC_CACHE = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}(\.dir)?$")
MOST_LINKS = 40


def real_path(path: Path) -> Path:
    """Follow the links that `path` is or goes through, and return what a writer has to replace: the links stay.

    What a dangling link names is returned as well. A link into DVC's cache is not followed.

    Raises:
        OSError: (ELOOP) the link leads to itself.
    """
    for _ in range(MOST_LINKS):
        path = _in_real_folder(path)
        if not path.is_symlink():
            return path
        target = _in_real_folder(path.parent / path.readlink())
        if IN_DVC_CACHE.search(target.as_posix()):
            return path
        path = target
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def is_stream(path: Path) -> bool:
    """Whether `path` leads to what can be written into, and not replaced: a terminal, a pipe, a FIFO, a device.

    Standard output counts as one where it was redirected to a file, too: others may have written to that before.
    """
    if _descriptor(path) is not None:
        return True
    try:
        kind = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(kind) and not stat.S_ISDIR(kind)


def write_into(path: Path, content: Path) -> None:
    """Write the bytes of the file `content` into the stream or device at `path`."""
    descriptor = _descriptor(path)
    if descriptor is not None and descriptor.parent.name == "fd" and _is_own(descriptor.parent):
        sys.stdout.flush()
        handle = os.dup(int(descriptor.name))  # opened by its name, a redirected file would be emptied
    else:
        handle = os.open(path, os.O_WRONLY)
    with os.fdopen(handle, "wb") as out, content.open("rb") as file:
        shutil.copyfileobj(file, out)


def is_mount(path: Path) -> bool:
    """Whether a file system, a folder or a file is mounted on `path`, which keeps its place then."""
    return path.exists() and (path in mounts() or path.stat().st_dev != path.parent.stat().st_dev)


def mounts() -> set[Path]:
    """Every mount point that this process sees."""
    try:
        return {Path(partition.mountpoint) for partition in psutil.disk_partitions(all=True)}
    except (OSError, RuntimeError):  # a container without /proc
        return set()


def _in_real_folder(path: Path) -> Path:
    """`path` without links in the folders above it."""
    path = path.absolute()
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


def _descriptor(path: Path) -> Path | None:
    """The name of the open file that `path` is, or is a link to."""
    for _ in range(MOST_LINKS):
        path = _in_real_folder(path)
        if path.name.isdigit() and DESCRIPTORS.fullmatch(path.parent.as_posix()):
            return path
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def _is_own(folder: Path) -> bool:
    return folder.as_posix() == "/dev/fd" or folder.parts[2] in ("self", "thread-self", str(os.getpid()))


TOKEN_BYTES = 8
# The hidden names of one writer: its lock, what it has written so far, and the folder that it replaces.
CLAIMED = re.compile(r"\.(?P<name>.+)\.(?P<token>[0-9a-f]{16})\.(?P<kind>lock|old|part)(?P<suffix>\..*)?")


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Let one process at a time write to `path`; the others wait, and say so.

    DVC leaves a stage running when DVC itself is killed, and starts a second one when it is started again.
    """
    lock_file = _lock_path(path)
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        info(f"Another process is writing {path}: waiting for it to end.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def exclusive_lock_if_free(path: Path) -> Iterator[bool]:
    """Like `only_one`, without waiting: yields whether this process is the one.

    A process that holds other paths may ask: it never waits, so there is no deadlock.
    """
    lock = FileLock(_lock_path(path))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether some process holds `only_one(path)` at this moment."""
    lock_file = _lock_path(path)
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
    remove_stale_tmp(path, folder)
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


def remove_stale_tmp(path: Path, folder: Path) -> None:
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
        old = replaced_name(path, token)
        try:
            if old.exists() and not path.exists():
                old.rename(path)
            for match in found:
                if match["token"] == token and match["kind"] != "lock":
                    remove(folder / match[0])
        finally:
            _remove_lock(lock, lock_file)


def replaced_name(path: Path, token: str) -> Path:
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


def _lock_path(path: Path) -> Path:
    target = real_path(path)
    return target.with_name(f".{target.name}.lock")


# What lets two names change places in one step: the function, and what stands before each path and behind both.
EXCHANGE_SYSCALLS = {"linux": ("renameat2", (ctypes.c_int(-100),), 2), "darwin": ("renamex_np", (), 2)}
# How a system refuses to rename a mount point, or a folder of a container's image.
MOUNT_POINT_ERRNOS = {errno.EBUSY, errno.EXDEV}
NO_SPACE_ERRNOS = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
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
        _fsync(part)
        part.replace(target)
        _fsync(target.parent)


@contextmanager
def atomic_replace_dir(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; when the block ends well, it takes the name and the place of `path`.

    A mount point keeps its place: its entries are replaced one by one.
    """
    with _staged(path) as (target, part):
        yield part
        for file in part.rglob("*"):
            _fsync(file)
        _fsync(part)
        names = {file.name for file in part.iterdir()}
        if part.parent == target or not _put(part, target):
            _replace_entries(part, target, names)
            for old in target.iterdir():
                if old.name not in names and not is_claimed_name(old.name):
                    remove(old)
            _fsync(target)
        _fsync(target.parent)


@contextmanager
def atomic_update_dir(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; the files in it when the block ends well go to `folder`, over those of their names.

    What else is in `folder` stays. All change at once: `folder` is exchanged for one that has the others as well. In a
    mount point they are replaced one by one.
    """
    with _staged(folder) as (target, part):
        yield part
        names = {file.name for file in part.iterdir()}
        for name in names:
            _fsync(part / name)
        target.mkdir(parents=True, exist_ok=True)
        if part.parent != target:
            _link_missing(target, part)
            _fsync(part)
        if part.parent == target or not _put(part, target):
            _replace_entries(part, target, names)
            _fsync(target)
        _fsync(target.parent)


def require_writable(path: Path, is_file: bool = False) -> None:
    """Refuse, before any work, a folder (or file) that could not be replaced when the work is done."""
    wanted, other = ("file", "folder") if is_file else ("folder", "file")
    try:
        target = real_path(path)
    except OSError:
        raise UserError(f"{path} is a link that leads to itself: remove it (`rm {path}`).") from None
    if is_stream(path) and is_file:
        if not os.access(path, os.W_OK):
            raise UserError(f"{path} may not be written to: allow it (`chmod u+w {path}`).")
        return
    if target.exists() and target.is_dir() == is_file:
        raise UserError(f"{path} is a {other}, and a {wanted} goes there: move it away, or name another {wanted}.")
    parent = next(folder for folder in target.parents if folder.exists())
    if not parent.is_dir():
        raise UserError(f"{parent} is no folder, and {target} goes there: move it away.")
    locked = next((place for place in (parent, target) if place.exists() and not os.access(place, os.W_OK)), None)
    if locked is not None:
        raise UserError(f"{locked} may not be written to, and the result goes there: allow it (`chmod u+w {locked}`).")
    if is_file and is_mount(target):
        raise UserError(
            f"{target} is mounted by itself, and such a file can't be replaced as a whole: mount its folder instead."
        )
    below = sorted(place for place in mounts() if target in place.parents)
    if below:
        raise UserError(f"{target} is replaced as a whole, but {below[0]} in it is a mount point: unmount that.")
    _try_exchange(target, target if is_mount(target) else parent)


def _try_exchange(target: Path, place: Path) -> None:
    """Do with empty folders what will be done with `target`, and refuse what the file system refuses."""
    try:
        with claimed(target, place) as probe:
            for name in ("new", "old"):
                (probe / name).mkdir(parents=True)
            _swap(probe / "new", probe / "old")
    except OSError as error:
        if error.errno in NO_SPACE_ERRNOS:
            raise
        raise UserError(
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
                _swap_dirs(part, target)
            else:
                part.rename(target)
            return True
        except OSError as error:
            if error.errno in MOUNT_POINT_ERRNOS:
                return False
            # Another process has made or removed it meanwhile.
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST) or not part.exists():
                raise


def _swap_dirs(new: Path, path: Path) -> None:
    """Let a folder that `claimed` named take the place of another, and that one its own."""
    _swap(new, path)


def _swap(new: Path, path: Path) -> None:
    """Let two folders change places: in one step where the system has one, by three renames where it has not."""
    name, before, behind = EXCHANGE_SYSCALLS.get(sys.platform, ("", (), 0))
    exchange = getattr(ctypes.CDLL(None, use_errno=True), name, None) if name else None
    if exchange is not None:
        one, other = ctypes.c_char_p(os.fsencode(new)), ctypes.c_char_p(os.fsencode(path))
        if not exchange(*before, one, *before, other, ctypes.c_uint(behind)):
            return
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # what a file system without it says
            raise OSError(number, os.strerror(number), str(path))
    old = replaced_name(path, token_of(new)) if is_claimed_name(new.name) else path.with_name(f"{path.name}.old")
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
            _fsync(old)
        else:
            if old.is_dir() and not old.is_symlink():
                remove(old)
            new.replace(old)


def _link_missing(folder: Path, part: Path) -> None:
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


def _fsync(path: Path) -> None:
    # A rename can outlive a power cut that the renamed bytes did not, unless they were forced to the disk before.
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
