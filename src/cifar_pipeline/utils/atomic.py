"""Replace files and folders atomically, and lock them against other processes.

A reader sees the old content or the new, never a mix. New content is written to a hidden temporary file or folder next
to the target and then renamed over it. Symbolic links are kept: their targets are replaced. Streams and devices
(/dev/stdout, FIFOs) are written into. Mount points cannot be renamed: their entries are replaced one by one.

A lock is an flock on a hidden file, which the system releases when the process ends, even if it is killed. Process ids
would be no substitute: they mean nothing in another container.
"""

import ctypes
import errno
import logging
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from filelock import FileLock, Timeout

from cifar_pipeline.utils.errors import EnvironmentFailure, UserError

log = logging.getLogger(__name__)

# Folders that list the open files of a process; /dev/stdout links into one.
DESCRIPTORS = re.compile(r"/proc/(self|thread-self|\d+)(/task/\d+)?/fd|/dev/fd")
# The target of a link that DVC made into its cache: it may be the only copy of an older result.
IN_DVC_CACHE = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}(\.dir)?$")
MAX_LINKS = 40
# Windows renames no path that another process has open: a virus scanner for a moment, a program for as long as it runs.
RENAMES_OPEN_PATHS = os.name != "nt"
RENAME_SECONDS, RENAME_INTERVAL = 10.0, 0.1


def real_path(path: Path) -> Path:
    """Resolve symbolic links to the path that a writer has to replace; the links themselves are kept.

    The target of a dangling link is returned as well. A link into DVC's cache is not followed.

    Raises:
        OSError: (ELOOP) the link points to itself.
    """
    for _ in range(MAX_LINKS):
        path = _resolve_parent(path)
        if not path.is_symlink():
            return path
        target = _resolve_parent(path.parent / path.readlink())
        if IN_DVC_CACHE.search(target.as_posix()):
            return path
        path = target
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def is_stream(path: Path) -> bool:
    """Whether `path` can be written into but not replaced: a terminal, a pipe, a FIFO, a device.

    Standard output counts as a stream even when redirected to a file, which may have content already.
    """
    if _descriptor(path) is not None:
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def write_into(path: Path, content: Path) -> None:
    """Copy the file `content` into the stream or device at `path`."""
    descriptor = _descriptor(path)
    if descriptor is not None and descriptor.parent.name == "fd" and _is_this_process(descriptor.parent):
        sys.stdout.flush()
        handle = os.dup(int(descriptor.name))  # opening it by name would truncate a redirected file
    else:
        handle = os.open(path, os.O_WRONLY)
    with os.fdopen(handle, "wb") as out, content.open("rb") as file:
        shutil.copyfileobj(file, out)


def is_mount(path: Path) -> bool:
    """Whether a file system, a folder or a file is mounted on `path`, which then cannot be renamed."""
    return path.exists() and (path in mounts() or path.stat().st_dev != path.parent.stat().st_dev)


def mounts() -> set[Path]:
    """Return all mount points visible to this process."""
    try:
        return {Path(partition.mountpoint) for partition in psutil.disk_partitions(all=True)}
    except (OSError, RuntimeError):  # a container without /proc
        return set()


def _resolve_parent(path: Path) -> Path:
    """Return `path` with the links in its parent folders resolved."""
    path = path.absolute()
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


def _descriptor(path: Path) -> Path | None:
    """Return the /proc or /dev/fd name of the open file that `path` is or links to; None for other paths."""
    for _ in range(MAX_LINKS):
        path = _resolve_parent(path)
        if path.name.isdigit() and DESCRIPTORS.fullmatch(path.parent.as_posix()):
            return path
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def _is_this_process(folder: Path) -> bool:
    return folder.as_posix() == "/dev/fd" or folder.parts[2] in ("self", "thread-self", str(os.getpid()))


TOKEN_BYTES = 8
# The hidden names of one writer: its lock, its temporary file, and the folder that it is replacing.
TMP_NAME = re.compile(r"\.(?P<name>.+)\.(?P<token>[0-9a-f]{16})\.(?P<role>lock|old|part)(?P<suffix>\..*)?")


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Let one process at a time write to `path`; others wait, with a message.

    Stages can overlap: a killed DVC leaves its stage running, and a restarted one starts it again.
    """
    lock_file = _lock_path(path)
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info(f"Another process is writing {path}: waiting for it to end.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def exclusive_lock_if_free(path: Path) -> Iterator[bool]:
    """Like `exclusive_lock`, without waiting: yield whether this process holds the lock.

    As it never waits, it is safe in a process that holds other locks.
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
    """Whether some process holds the `exclusive_lock` of `path` at this moment."""
    lock_file = _lock_path(path)
    if not lock_file.parent.is_dir():
        return False
    try:
        with FileLock(lock_file).acquire(timeout=0):
            return False
    except Timeout:
        return True


@contextmanager
def claim_tmp_path(path: Path, folder: Path) -> Iterator[Path]:
    """Yield a unique hidden path in `folder` for the new content of `path`; remove whatever is left there afterwards.

    Temporary files of killed writers of `path` are removed first. A writer is alive while it holds the lock of its
    token, which works across threads, processes and containers.
    """
    remove_stale_tmp(path, folder)
    token = secrets.token_hex(TOKEN_BYTES)
    lock_file = folder / f".{path.name}.{token}.lock"
    tmp = folder / f".{path.name}.{token}.part{path.suffix}"
    lock = FileLock(lock_file)
    while True:
        lock.acquire()
        if lock_file.exists():
            break
        lock.release()  # removed by `remove_stale_tmp` between its creation and its locking
    try:
        yield tmp
    finally:
        remove(tmp)
        _remove_lock(lock, lock_file)


def remove_stale_tmp(path: Path, folder: Path) -> None:
    """Remove from `folder` what killed writers of `path` left; restore a folder that was being replaced."""
    matches = [TMP_NAME.fullmatch(entry.name) for entry in folder.iterdir()]
    own = [match for match in matches if match and match["name"] == path.name]
    for token in {match["token"] for match in own}:
        lock_file = folder / f".{path.name}.{token}.lock"
        lock = FileLock(lock_file)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):  # its writer is alive, or is another user
            continue
        old = old_path(path, token)
        try:
            if old.exists() and not path.exists():
                _rename(old, path)
            for match in own:
                if match["token"] == token and match["role"] != "lock":
                    remove(folder / match[0])
        finally:
            _remove_lock(lock, lock_file)


def remove_all_stale_tmp(folder: Path) -> None:
    """Remove from `folder` what killed writers of any path in it left."""
    for name in {match["name"] for entry in folder.iterdir() if (match := TMP_NAME.fullmatch(entry.name))}:
        remove_stale_tmp(folder / name, folder)


def is_claimed(path: Path) -> bool:
    """Whether some process is in the block of a `claim_tmp_path` of `path` in its folder."""
    remove_stale_tmp(path, path.parent)
    matches = (TMP_NAME.fullmatch(entry.name) for entry in path.parent.iterdir())
    return any(match is not None and match["name"] == path.name for match in matches)


def old_path(path: Path, token: str) -> Path:
    """Return the hidden name of a folder while it is being replaced by several renames."""
    return path.with_name(f".{path.name}.{token}.old")


def token_of(tmp: Path) -> str:
    """Return the token in a path of `claim_tmp_path`."""
    match = TMP_NAME.fullmatch(tmp.name)
    assert match is not None
    return match["token"]


def is_tmp_name(name: str) -> bool:
    """Whether a file name is one of a writer's hidden names."""
    return TMP_NAME.fullmatch(name) is not None


def remove(path: Path) -> None:
    """Remove a file, a link or a folder tree, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_lock(lock: FileLock, lock_file: Path) -> None:
    with suppress(OSError):  # Windows cannot remove open files
        lock_file.unlink(missing_ok=True)
    lock.release()


def _lock_path(path: Path) -> Path:
    target = real_path(path)
    return target.with_name(f".{target.name}.lock")


# System calls that swap two paths in one step: function, arguments before each path, and flags after both.
EXCHANGE_SYSCALLS = {"linux": ("renameat2", (ctypes.c_int(-100),), 2), "darwin": ("renamex_np", (), 2)}
# Errors of renaming a mount point, or a folder of a container's image.
MOUNT_POINT_ERRNOS = {errno.EBUSY, errno.EXDEV}
NO_SPACE_ERRNOS = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `path` when the block ends without an error.

    Concurrent writers of the same `path` are safe: the last one wins. For a stream, a FIFO or a device, the content is
    copied into it at the end.
    """
    if is_stream(path):
        with TemporaryDirectory(prefix="tmp-") as folder:
            tmp = Path(folder) / f"tmp{path.suffix}"
            yield tmp
            write_into(path, tmp)
        return
    target = real_path(path)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    with claim_tmp_path(target, target.parent) as tmp:
        yield tmp
        _fsync(tmp)
        _rename(tmp, target)
        _fsync(target.parent)


@contextmanager
def atomic_replace_dir(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill, and replace the folder `path` by it when the block ends without an error.

    The entries of a mount point, which cannot be renamed, are replaced one by one.
    """
    with _staged(path) as (target, tmp):
        yield tmp
        for file in tmp.rglob("*"):
            _fsync(file)
        _fsync(tmp)
        names = {file.name for file in tmp.iterdir()}
        if tmp.parent == target or not _move_into_place(tmp, target):
            _replace_entries(tmp, target, names)
            for old in target.iterdir():
                if old.name not in names and not is_tmp_name(old.name):
                    remove(old)
            _fsync(target)
        _fsync(target.parent)


@contextmanager
def atomic_update_dir(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; when the block ends without an error, move its files into `folder`, replacing old ones.

    Other files in `folder` are kept. All files change at once, as `folder` is swapped for a folder with both; in a
    mount point they are replaced one by one.
    """
    with _staged(folder) as (target, tmp):
        yield tmp
        names = {file.name for file in tmp.iterdir()}
        for name in names:
            _fsync(tmp / name)
        target.mkdir(parents=True, exist_ok=True)
        if tmp.parent != target:
            _link_missing(target, tmp)
            _fsync(tmp)
        if tmp.parent == target or not _move_into_place(tmp, target):
            _replace_entries(tmp, target, names)
            _fsync(target)
        _fsync(target.parent)


def require_writable(path: Path, is_file: bool = False) -> None:
    """Check, before any work, that a folder (or file) can be replaced when the work is done.

    Raises:
        UserError: it is the wrong type of file, not writable, or a mount point is in the way.
    """
    expected, actual = ("file", "folder") if is_file else ("folder", "file")
    try:
        target = real_path(path)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UserError(f"{path} is a symbolic link to itself: remove it (`rm {path}`).") from None
    if not is_file and Path.cwd().is_relative_to(target):
        raise UserError(f"{path} is replaced, but contains the current folder: choose another folder.")
    if is_stream(path) and is_file:
        if not os.access(path, os.W_OK):
            raise UserError(f"{path} is not writable: allow it (`chmod u+w {path}`).")
        return
    if target.exists() and target.is_dir() == is_file:
        raise UserError(
            f"{path} is a {actual}, but a {expected} will be written there: move it away, or choose another {expected}."
        )
    parent = next(folder for folder in target.parents if folder.exists())
    if not parent.is_dir():
        raise UserError(f"{parent} is not a folder, but {target} will be written there: move it away.")
    locked = next((folder for folder in (parent, target) if folder.exists() and not os.access(folder, os.W_OK)), None)
    if locked is not None:
        raise UserError(f"{locked} is not writable, but the result will be written there: `chmod u+w {locked}`.")
    if is_file and is_mount(target):
        raise UserError(f"{target} is a mounted file, which cannot be replaced atomically: mount its folder instead.")
    below = sorted(mount for mount in mounts() if target in mount.parents)
    if below:
        raise UserError(f"{target} is replaced atomically, but {below[0]} in it is a mount point: unmount that.")
    _try_swap(target, target if is_mount(target) else parent)


def _try_swap(target: Path, folder: Path) -> None:
    """Swap two empty folders in `folder`. Raises UserError where its file system does not allow that."""
    try:
        with claim_tmp_path(target, folder) as probe:
            for name in ("new", "old"):
                (probe / name).mkdir(parents=True)
            _swap(probe / "new", probe / "old")
    except OSError as error:
        if error.errno in NO_SPACE_ERRNOS:
            raise
        raise UserError(
            f"{folder} does not allow renames, with which {target.name} is replaced ({error.strerror}): make it "
            f"writable, or make {target.name} a link to a folder elsewhere."
        ) from None


@contextmanager
def _staged(path: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the real folder and an empty temporary one that will replace it; a mounted folder contains the latter."""
    target = real_path(path)
    folder = target if is_mount(target) else target.parent
    folder.mkdir(parents=True, exist_ok=True)
    with claim_tmp_path(target, folder) as tmp:
        tmp.mkdir()
        yield target, tmp


def _move_into_place(tmp: Path, target: Path) -> bool:
    """Rename `tmp` to `target`, or swap them where `target` exists; False where `target` cannot be renamed."""
    while True:
        try:
            if target.exists():
                _swap_dirs(tmp, target)
            else:
                _rename(tmp, target)
            return True
        except OSError as error:
            if error.errno in MOUNT_POINT_ERRNOS:
                return False
            # Another process has created or removed it in the meantime.
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST) or not tmp.exists():
                raise


def _swap_dirs(new: Path, path: Path) -> None:
    """Swap a temporary folder of `claim_tmp_path` with the folder that it replaces."""
    _swap(new, path)


def _swap(new: Path, path: Path) -> None:
    """Swap two folders: in one system call where there is one, otherwise by three renames."""
    name, before, flags = EXCHANGE_SYSCALLS.get(sys.platform, ("", (), 0))
    exchange = getattr(ctypes.CDLL(None, use_errno=True), name, None) if name else None
    if exchange is not None:
        first, second = ctypes.c_char_p(os.fsencode(new)), ctypes.c_char_p(os.fsencode(path))
        if not exchange(*before, first, *before, second, ctypes.c_uint(flags)):
            return
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # the file system does not support it
            raise OSError(number, os.strerror(number), str(path))
    old = old_path(path, token_of(new)) if is_tmp_name(new.name) else path.with_name(f"{path.name}.old")
    _rename(path, old)
    _rename(new, path)
    _rename(old, new)


def _rename(path: Path, target: Path) -> None:
    """Rename a file or folder, a file over an existing one; on Windows wait for other processes that have it open.

    Raises:
        EnvironmentFailure: another process has it open for more than `RENAME_SECONDS`.
    """
    end = time.monotonic() + RENAME_SECONDS
    while True:
        try:
            path.replace(target)
            return
        except PermissionError:
            if RENAMES_OPEN_PATHS:
                raise
            if time.monotonic() > end:
                raise EnvironmentFailure(
                    f"{target} cannot be replaced while another program has it open: close that program; finished work "
                    "is kept, and the same command resumes it."
                ) from None
            time.sleep(RENAME_INTERVAL)


def _replace_entries(tmp: Path, folder: Path, names: Iterable[str]) -> None:
    """Move the entries of `tmp` into `folder`, file by file.

    Subfolders are descended into, because those of a container's image cannot be renamed.
    """
    for new in sorted(tmp / name for name in names):
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
            _rename(new, old)


def _link_missing(folder: Path, tmp: Path) -> None:
    """Add to `tmp` what only `folder` has, as hard links where the file system supports them."""
    existing = {path.name for path in tmp.iterdir()}

    def ignored(subfolder: str, names: list[str]) -> set[str]:
        return existing & set(names) if Path(subfolder) == folder else set()

    shutil.copytree(folder, tmp, symlinks=True, ignore=ignored, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _fsync(path: Path) -> None:
    # Without it, a rename may survive a power cut while the renamed content does not.
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
