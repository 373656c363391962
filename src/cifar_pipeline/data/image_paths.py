"""Folders of images, walked: which files are taken, and for each other one the reason why not.

Which image files a person means by files, folders and a list of paths.
"""

import codecs
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from cifar_pipeline.data.images import SUFFIXES
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.safe_io import irregular_type

# Where systems, archives and network drives keep what is theirs: thumbnails, snapshots, what was deleted.
SYSTEM_FILES = {
    "@eadir", "@__thumb", "#recycle", "@recycle", "#snapshot", "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini",
    "$recycle.bin", "system volume information", "lost+found",
}  # fmt: skip
HIDDEN = "it is hidden, or a system's own"
NOT_A_FILE = ", not a file"
MAX_LISTED = 10


class FoundFile(NamedTuple):
    """A path with the reason why it is not taken; without a reason, it is named like an image and read as one."""

    path: Path
    reason: str = ""


class SkippedFile(NamedTuple):
    """A file that is not taken: its path below the folder of the images, and the reason."""

    path: str
    reason: str


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out: it begins with a dot, or is one of SYSTEMS."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def iter_files(folder: Path) -> Iterator[FoundFile]:
    """Yield what lies in a folder and below, by name, files before folders; what is not taken with its reason.

    Of a hidden folder, and of one that may not be read, the folder itself is given; links to folders are not followed.
    One folder's names are in memory at a time.
    """
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield FoundFile(folder, f"it may not be read ({error.strerror})")
        return
    below: list[Path] = []
    for entry in listed:
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False) and not is_hidden(entry.name):
            below.append(path)
        else:
            yield FoundFile(path, skip_reason(entry))
    for inner in below:
        yield from iter_files(inner)


def skip_reason(entry: "os.DirEntry[str]") -> str:
    """Why an entry that is no folder, or a hidden one, is not taken; empty where it is."""
    if is_hidden(entry.name):
        return HIDDEN
    try:
        if not entry.is_file():  # a link that leads nowhere counts as an image that can't be read
            kind = "" if entry.is_symlink() and not Path(entry.path).exists() else irregular_type(entry.stat().st_mode)
            if kind:
                return f"it is {'a link to ' if entry.is_symlink() else ''}{kind}{NOT_A_FILE}"
    except OSError as error:
        return f"it may not be read ({error.strerror})"
    suffix = Path(entry.name).suffix
    if suffix.lower() in SUFFIXES:
        return ""
    return f"no image's name ends in {suffix}" if suffix else "its name has no suffix, such as .jpg"


class SkipCounts:
    """What is not taken, counted by reason; the first ten names of each reason are kept."""

    def __init__(self, skipped: Iterable[tuple[str, str]] = ()) -> None:
        self.counts = Counter[str]()
        self.names: dict[str, list[str]] = {}
        for name, reason in skipped:
            self.add(name, reason)

    def add(self, name: str, reason: str) -> None:
        # The details in brackets would make a reason of each damaged file.
        reason = reason.partition(" (")[0] if reason.startswith("it is damaged") else reason
        self.counts[reason] += 1
        names = self.names.setdefault(reason, [])
        if len(names) < MAX_LISTED:
            names.append(name)

    def __len__(self) -> int:
        return self.counts.total()

    def __str__(self) -> str:
        """The reasons with their counts, the most frequent first."""
        return "; ".join(f"{reason} ({count:,})" for reason, count in self.counts.most_common())

    def named(self) -> list[tuple[str, str]]:
        """Ten names with their reasons at most, of each reason as many as of the others."""
        share = max(1, MAX_LISTED // max(1, len(self.names)))
        return [(name, reason) for reason, _ in self.counts.most_common() for name in self.names[reason][:share]][
            :MAX_LISTED
        ]


STDIN = "-"
# Of a path with its line's end; Linux takes 4096 bytes, Windows 32,767 characters.
MAX_PATH_LENGTH = 100_000
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def iter_image_files(
    names: Iterable[str], listed: Iterable[bytes] = (), skip: Callable[[FoundFile], None] = lambda found: None
) -> Iterator[Path]:
    """Each image file, in order: a file as it is, a folder as the images in it and below, by name.

    For the name `-` stand the paths in `listed`, one a line, as the system writes them. What is not there comes as it
    is, and so does a folder that holds no image: whoever reads it will say so. `skip` is handed each file in a folder
    that is no image, with its reason. Raises Refusal where `listed` is no list of paths.
    """
    for name in names:
        if name == STDIN:
            yield from iter_image_files(_paths(listed), skip=skip)
        elif Path(name).is_dir():
            is_empty = True
            for found in iter_files(Path(name)):
                if found.reason:
                    skip(found)
                    continue
                is_empty = False
                yield found.path
            if is_empty:
                yield Path(name)
        else:
            yield Path(name)


def iter_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a list of paths. One that goes on beyond any path is cut, so that it takes no memory."""
    return iter(lambda: stream.readline(MAX_PATH_LENGTH), b"")


def count_image_files(names: Sequence[str]) -> int | None:
    """How many files `image_files` will give; None where a list is among them, which can be read only once."""
    return None if STDIN in names else sum(1 for _ in iter_image_files(names))


def _paths(lines: Iterable[bytes]) -> Iterator[str]:
    """The paths in a list of one a line; blank lines are none. Raises Refusal, with the line, for what is no path."""
    for number, line in enumerate(lines, 1):
        if number == 1:
            if line.startswith(UTF16):
                raise UserError("The list of paths is UTF-16: write it in UTF-8.")
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) >= MAX_PATH_LENGTH:
            raise UserError(
                f"Line {number} of the list of paths has {MAX_PATH_LENGTH:,} bytes or more: write a path a line."
            )
        if b"\0" in line:
            raise UserError(
                f"Line {number} of the list of paths has a NUL byte: write a path a line (`find` without -print0)."
            )
        path = os.fsdecode(line.rstrip(b"\r\n"))
        if path.strip() and path.strip() != STDIN:
            yield path
