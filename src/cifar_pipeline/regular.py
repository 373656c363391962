"""Regular files, told from pipes, sockets, devices and folders before anything opens them."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from cifar_pipeline.console import Refusal

# What a path may lead to instead of a regular file. Opening one may wait for ever, or do something to a device.
IRREGULAR = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class Irregular(Refusal):
    """A path that leads to no regular file; `kind` says in words what it leads to."""

    def __init__(self, path: Path, kind: str) -> None:
        super().__init__(f"{path} is {kind}, not a file: name a regular file.")
        self.kind = kind


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read its bytes, and never wait for a pipe or touch a device.

    Raises:
        Irregular: `path` is a named pipe, a socket, a device or a folder.
        OSError: there is no such file, or it may not be read.
    """
    require_regular(path, path.stat().st_mode)
    # What lies there may be exchanged after it was looked at: without O_NONBLOCK a pipe would be waited for.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        require_regular(path, os.fstat(handle).st_mode)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def text_of(path: Path) -> str:
    """Read a regular file of UTF-8. Raises as `open_regular` does, and UnicodeDecodeError."""
    with open_regular(path) as file:
        return file.read().decode()


def require_regular(path: Path, mode: int | None = None) -> None:
    """Raise Irregular where `path`, or the `mode` that was found for it, is that of no regular file."""
    kind = irregular_kind(path.stat().st_mode if mode is None else mode)
    if kind:
        raise Irregular(path, kind)


def irregular_kind(mode: int) -> str:
    """Return in words what a file's mode (`st_mode`) says that it is; empty for a regular file."""
    return "" if stat.S_ISREG(mode) else IRREGULAR.get(stat.S_IFMT(mode), "something else")
