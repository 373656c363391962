"""Which picture files a person means by files, folders and a list of paths."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cifar_pipeline.data.pictures import pictures_in

LISTED = "-"


def picture_files(names: Iterable[str], listed: Iterable[str] = ()) -> Iterator[Path]:
    """Each picture file, in order: a file as it is, a folder as the pictures in it and below, by name.

    For the name `-` stand the paths in `listed`, one a line. What is not there comes as it is, and so does a folder
    that holds no picture: whoever reads it will say so.
    """
    for name in names:
        if name == LISTED:
            yield from picture_files(line.rstrip("\r\n") for line in listed if line.strip() and line.strip() != LISTED)
        elif Path(name).is_dir():
            inside = pictures_in(Path(name))
            first = next(inside, Path(name))
            yield first
            yield from inside
        else:
            yield Path(name)


def count(names: Sequence[str]) -> int | None:
    """How many files `picture_files` will give; None where a list is among them, which can be read only once."""
    return None if LISTED in names else sum(1 for _ in picture_files(names))
