"""Open regular files only, and parse untrusted YAML and JSON within bounds.

Pipes, sockets, devices and folders are rejected before they are opened. Documents that expand to far more than their
size (YAML's "billion laughs") or are nested too deep are format errors.
"""

import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import yaml

from cifar_pipeline.utils.errors import UserError

if TYPE_CHECKING:
    pass

# File types other than regular files. Opening one may block forever, or affect a device.
NOT_REGULAR = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class NotRegularFile(UserError):
    """A path that is not a regular file; `kind` is its type in words, such as "a socket"."""

    def __init__(self, path: Path, kind: str) -> None:
        super().__init__(f"{path} is {kind}, not a file: give a regular file.")
        self.kind = kind


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read its bytes, without ever blocking on a pipe or opening a device.

    Raises:
        NotRegularFile: `path` is a named pipe, a socket, a device or a folder.
        OSError: there is no such file, or it is not readable.
    """
    require_regular(path, path.stat().st_mode)
    # The path may be replaced by a pipe after the check: O_NONBLOCK keeps `open` from blocking.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        require_regular(path, os.fstat(handle).st_mode)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_text(path: Path) -> str:
    """Read a regular file as UTF-8. Raises what `open_regular` raises, and UnicodeDecodeError."""
    with open_regular(path) as file:
        return file.read().decode()


def require_regular(path: Path, mode: int | None = None) -> None:
    """Raise NotRegularFile unless `path`, or its known `mode` (`st_mode`), is that of a regular file."""
    kind = irregular_type(path.stat().st_mode if mode is None else mode)
    if kind:
        raise NotRegularFile(path, kind)


def irregular_type(mode: int) -> str:
    """Return the file type of a mode (`st_mode`) in words; empty for a regular file."""
    return "" if stat.S_ISREG(mode) else NOT_REGULAR.get(stat.S_IFMT(mode), "something else")


# More than any file of ours needs, and far below Python's recursion limit.
MAX_DEPTH = 50
# Values that a document repeats by aliases (`*name`), counting nested ones: OmegaConf copies each.
MAX_ALIASED_NODES = 10_000


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises ValueError where it is invalid or nested too deep."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def parse_yaml(text: str | bytes) -> Any:
    """Parse YAML of plain values. Raises yaml.YAMLError where it is invalid or exceeds `require_bounded`."""
    require_bounded(text)
    return yaml.safe_load(text)


def require_bounded(text: str | bytes, name: str = "") -> None:
    """Raise yaml.YAMLError, with the line, for a YAML document that is nested too deep or expands too much.

    `name` is the file's name in the message. Nested aliases ("billion laughs") turn a few hundred bytes into millions
    of values, and a value that contains itself never ends.
    """
    stream = yaml.SafeLoader(text)
    stream.name = name or stream.name
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = []
    count = aliased = 0
    try:
        while stream.check_event():
            event: yaml.Event = stream.get_event()  # type: ignore[no-untyped-call]
            problem = None
            if isinstance(event, yaml.CollectionEndEvent):
                anchor, before = opened.pop()
                if anchor:
                    sizes[anchor] = count - before
            elif isinstance(event, yaml.AliasEvent):
                size = sizes.get(event.anchor or "", 0)
                count, aliased = count + size, aliased + size
                if any(event.anchor == anchor for anchor, _ in opened):
                    problem = f"the value `{event.anchor}` contains itself"
                elif aliased > MAX_ALIASED_NODES:
                    problem = f"its aliases expand to more than {MAX_ALIASED_NODES:,} values"
            elif isinstance(event, yaml.NodeEvent):
                count += 1
                if isinstance(event, yaml.CollectionStartEvent):
                    opened.append((event.anchor, count - 1))
                    problem = f"it is nested deeper than {MAX_DEPTH} values" if len(opened) > MAX_DEPTH else None
                elif event.anchor:
                    sizes[event.anchor] = 1
            if problem:
                raise yaml.MarkedYAMLError(None, None, problem, event.start_mark)  # type: ignore[arg-type]
    finally:
        stream.dispose()
