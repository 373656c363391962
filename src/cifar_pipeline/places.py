"""Where a path leads: links followed, streams and devices told from files, mount points from folders."""

import errno
import os
import re
import shutil
import stat
import sys
from pathlib import Path

import psutil

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
