"""Which picture files a person means by files, folders and a list of paths."""

import codecs
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from cifar_pipeline.console import Refusal
from cifar_pipeline.data.folders import Found, files_in

LISTED = "-"
# Of a path with its line's end; Linux takes 4096 bytes, Windows 32,767 characters.
LONGEST = 100_000
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def picture_files(
    names: Iterable[str], listed: Iterable[bytes] = (), skip: Callable[[Found], None] = lambda found: None
) -> Iterator[Path]:
    """Each picture file, in order: a file as it is, a folder as the pictures in it and below, by name.

    For the name `-` stand the paths in `listed`, one a line, as the system writes them. What is not there comes as it
    is, and so does a folder that holds no picture: whoever reads it will say so. `skip` is handed each file in a folder
    that is no picture, with its reason. Raises Refusal where `listed` is no list of paths.
    """
    for name in names:
        if name == LISTED:
            yield from picture_files(_paths(listed), skip=skip)
        elif Path(name).is_dir():
            is_empty = True
            for found in files_in(Path(name)):
                if found.reason:
                    skip(found)
                    continue
                is_empty = False
                yield found.path
            if is_empty:
                yield Path(name)
        else:
            yield Path(name)


def lines_of(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a list of paths. One that goes on beyond any path is cut, so that it takes no memory."""
    return iter(lambda: stream.readline(LONGEST), b"")


def count(names: Sequence[str]) -> int | None:
    """How many files `picture_files` will give; None where a list is among them, which can be read only once."""
    return None if LISTED in names else sum(1 for _ in picture_files(names))


def _paths(lines: Iterable[bytes]) -> Iterator[str]:
    """The paths in a list of one a line; blank lines are none. Raises Refusal, with the line, for what is no path."""
    for number, line in enumerate(lines, 1):
        if number == 1:
            if line.startswith(UTF16):
                raise Refusal("The list of paths is UTF-16: write it in UTF-8.")
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) >= LONGEST:
            raise Refusal(f"Line {number} of the list of paths has {LONGEST:,} bytes or more: write a path a line.")
        if b"\0" in line:
            raise Refusal(
                f"Line {number} of the list of paths has a NUL byte: write a path a line (`find` without -print0)."
            )
        path = os.fsdecode(line.rstrip(b"\r\n"))
        if path.strip() and path.strip() != LISTED:
            yield path
