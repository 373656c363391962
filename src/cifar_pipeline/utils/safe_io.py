"""Regular files, told from pipes, sockets, devices and folders before anything opens them.

Parse YAML and JSON that nobody vouches for: what would cost far more than its size is an error of the format.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from cifar_pipeline.utils.errors import UserError

# What a path may lead to instead of a regular file. Opening one may wait for ever, or do something to a device.
NOT_REGULAR = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class NotRegularFile(UserError):
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


def read_text(path: Path) -> str:
    """Read a regular file of UTF-8. Raises as `open_regular` does, and UnicodeDecodeError."""
    with open_regular(path) as file:
        return file.read().decode()


def require_regular(path: Path, mode: int | None = None) -> None:
    """Raise Irregular where `path`, or the `mode` that was found for it, is that of no regular file."""
    kind = irregular_type(path.stat().st_mode if mode is None else mode)
    if kind:
        raise NotRegularFile(path, kind)


def irregular_type(mode: int) -> str:
    """Return in words what a file's mode (`st_mode`) says that it is; empty for a regular file."""
    return "" if stat.S_ISREG(mode) else NOT_REGULAR.get(stat.S_IFMT(mode), "something else")


# Far more than any file here needs, and far less than Python's limit for recursion.
MAX_DEPTH = 50
# Values that stand in a document by an alias (`*name`), all those below it included: OmegaConf copies each.
MAX_ALIASED_NODES = 10_000


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises ValueError where it is none, or nested too deep."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def parse_yaml(text: str | bytes) -> Any:
    """Parse YAML of plain values. Raises yaml.YAMLError as `require_bounded` does, and where it is none."""
    require_bounded(text)
    return yaml.safe_load(text)


def require_bounded(text: str | bytes, name: str = "") -> None:
    """Raise yaml.YAMLError, with the place, where a document of YAML is nested too deep or larger than it looks.

    `name` is that of the file, for the message. Anchors in anchors ("billion laughs") make a document of a few hundred
    bytes into millions of values, and one that holds itself has no end.
    """
    stream = yaml.SafeLoader(text)
    stream.name = name or stream.name
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = []
    count = aliased = 0
    try:
        while stream.check_event():
            event: yaml.Event = stream.get_event()  # type: ignore[no-untyped-call]
            fault = None
            if isinstance(event, yaml.CollectionEndEvent):
                anchor, before = opened.pop()
                if anchor:
                    sizes[anchor] = count - before
            elif isinstance(event, yaml.AliasEvent):
                size = sizes.get(event.anchor or "", 0)
                count, aliased = count + size, aliased + size
                if any(event.anchor == anchor for anchor, _ in opened):
                    fault = f"the value `{event.anchor}` holds itself"
                elif aliased > MAX_ALIASED_NODES:
                    fault = f"its aliases stand for more than {MAX_ALIASED_NODES:,} values"
            elif isinstance(event, yaml.NodeEvent):
                count += 1
                if isinstance(event, yaml.CollectionStartEvent):
                    opened.append((event.anchor, count - 1))
                    fault = f"it is nested deeper than {MAX_DEPTH} values" if len(opened) > MAX_DEPTH else None
                elif event.anchor:
                    sizes[event.anchor] = 1
            if fault:
                raise yaml.MarkedYAMLError(None, None, fault, event.start_mark)  # type: ignore[arg-type]
    finally:
        stream.dispose()
