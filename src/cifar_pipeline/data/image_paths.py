"""Find image files in folders and lists of paths, with the reason for each file that is skipped."""

import codecs
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from cifar_pipeline.data.images import SUFFIXES
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.safe_io import irregular_type
from cifar_pipeline.utils.text import MAX_LISTED, list_names

# Thumbnails, snapshots and trash of operating systems, archivers and network drives.
SYSTEM_FILES = {
    "@eadir", "@__thumb", "#recycle", "@recycle", "#snapshot", "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini",
    "$recycle.bin", "system volume information", "lost+found",
}  # fmt: skip
HIDDEN = "hidden or system file"
NOT_A_FILE = ", not a file"
STDIN = "-"
# With the line ending; Linux allows 4,096 bytes, Windows 32,767 characters.
MAX_PATH_LENGTH = 100_000
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class FoundFile(NamedTuple):
    """A path, and the reason to skip it; an empty reason: its name is that of an image."""

    path: Path
    reason: str = ""


class SkippedFile(NamedTuple):
    """The path of a skipped file, relative to the image folder, and the reason."""

    path: str
    reason: str


def is_hidden(name: str) -> bool:
    """Return whether a file or folder name begins with a dot or is one of SYSTEM_FILES."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def iter_files(folder: Path) -> Iterator[FoundFile]:
    """Walk a folder: yield its files sorted by name, then those of its subfolders, skipped ones with the reason.

    For a hidden or unreadable folder, the folder itself is yielded; links to folders are not followed. The names of one
    folder at a time are in memory.
    """
    try:
        with os.scandir(folder) as entries:
            sorted_entries = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield FoundFile(folder, f"cannot be read ({error.strerror})")
        return
    subfolders: list[Path] = []
    for entry in sorted_entries:
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False) and not is_hidden(entry.name):
            subfolders.append(path)
        else:
            yield FoundFile(path, skip_reason(entry))
    for subfolder in subfolders:
        yield from iter_files(subfolder)


def skip_reason(entry: "os.DirEntry[str]") -> str:
    """Return the reason to skip a file or hidden folder; empty if its name is that of an image."""
    if is_hidden(entry.name):
        return HIDDEN
    try:
        if not entry.is_file():  # a dangling link counts as an image that cannot be read
            is_dangling = entry.is_symlink() and not Path(entry.path).exists()
            file_type = "" if is_dangling else irregular_type(entry.stat().st_mode)
            if file_type:
                return f"{'a link to ' if entry.is_symlink() else ''}{file_type}{NOT_A_FILE}"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    suffix = Path(entry.name).suffix
    if suffix.lower() in SUFFIXES:
        return ""
    return f"{suffix} is not an image suffix" if suffix else "no suffix such as .jpg"


class SkipCounts:
    """Count skipped files by reason and keep the first ten names for each reason."""

    def __init__(self, skipped: Iterable[tuple[str, str]] = ()) -> None:
        self.counts = Counter[str]()
        self.names: dict[str, list[str]] = {}
        for name, reason in skipped:
            self.add(name, reason)

    def add(self, name: str, reason: str) -> None:
        # Without the decoder's message in parentheses, so that damaged files have one reason.
        reason = reason.partition(" (")[0] if reason.startswith("damaged") else reason
        self.counts[reason] += 1
        names = self.names.setdefault(reason, [])
        if len(names) < MAX_LISTED:
            names.append(name)

    def __len__(self) -> int:
        return self.counts.total()

    def __str__(self) -> str:
        """The reasons with their counts, the most frequent first."""
        return list_names((f"{reason} ({count:,})" for reason, count in self.counts.most_common()), "; ")

    def named(self) -> list[tuple[str, str]]:
        """Return up to ten (name, reason) pairs, equally many for each reason."""
        share = max(1, MAX_LISTED // max(1, len(self.names)))
        return [(name, reason) for reason, _ in self.counts.most_common() for name in self.names[reason][:share]][
            :MAX_LISTED
        ]


def iter_image_files(
    names: Iterable[str], listed: Iterable[bytes] = (), skip: Callable[[FoundFile], None] = lambda file: None
) -> Iterator[Path]:
    """Expand files, folders and "-" into image paths, in order; the images of a folder are sorted by name.

    "-" is replaced by the paths in `listed`, one per line, in the system's encoding. Missing files and folders without
    images are yielded unchanged, for the reader to report. `skip` is called with each file in a folder that is not an
    image. Raises UserError if `listed` is not a list of paths.
    """
    for name in names:
        if name == STDIN:
            yield from iter_image_files(_parse_paths(listed), skip=skip)
        elif _is_dir(path := existing_spelling(Path(name))):
            is_empty = True
            for file in iter_files(path):
                if file.reason:
                    skip(file)
                    continue
                is_empty = False
                yield file.path
            if is_empty:
                yield path
        else:
            yield path


def existing_spelling(path: Path) -> Path:
    """Return the spelling of a path under which it exists, composed or decomposed as macOS does; else the path itself.

    A table that was written on one system may list files that were copied from another.
    """
    if str(path).isascii():
        return path
    spellings = (path, *(Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD")))
    with suppress(OSError):  # a name that is too long
        return next((spelling for spelling in spellings if spelling.exists()), path)
    return path


def _is_dir(path: Path) -> bool:
    with suppress(OSError):  # a name that is too long, which the reader reports
        return path.is_dir()
    return False


def iter_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a list of paths, cut to MAX_PATH_LENGTH to limit the memory."""
    return iter(lambda: stream.readline(MAX_PATH_LENGTH), b"")


def count_image_files(names: Sequence[str]) -> int | None:
    """Return how many files `iter_image_files` yields; None with "-", because a stream can be read only once."""
    return None if STDIN in names else sum(1 for _ in iter_image_files(names))


def _parse_paths(lines: Iterable[bytes]) -> Iterator[str]:
    """Yield the paths in a list with one per line, without blank lines. Raises UserError with the line's number."""
    for number, line in enumerate(lines, 1):
        if number == 1:
            if line.startswith(UTF16):
                raise UserError("The list of paths is UTF-16; write it in UTF-8.")
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) >= MAX_PATH_LENGTH:
            raise UserError(
                f"Line {number} of the list of paths has {MAX_PATH_LENGTH:,} bytes or more; write one path per line."
            )
        if b"\0" in line:
            raise UserError(
                f"Line {number} of the list of paths contains a NUL byte; write one path per line (`find` without "
                "-print0)."
            )
        path = os.fsdecode(line.rstrip(b"\r\n"))
        if path.strip() and path.strip() != STDIN:
            yield path
