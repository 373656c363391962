"""Folders of pictures, walked: which files are taken, and for each other one the reason why not."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from cifar_pipeline.data.pictures import SUFFIXES
from cifar_pipeline.regular import irregular_kind

# Where systems, archives and network drives keep what is theirs: thumbnails, snapshots, what was deleted.
SYSTEMS = {
    "@eadir", "@__thumb", "#recycle", "@recycle", "#snapshot", "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini",
    "$recycle.bin", "system volume information", "lost+found",
}  # fmt: skip
HIDDEN = "it is hidden, or a system's own"
NOT_A_FILE = ", not a file"
NAMED = 10


class Found(NamedTuple):
    """A path with the reason why it is not taken; without a reason, it is named like a picture and read as one."""

    path: Path
    reason: str = ""


class Skipped(NamedTuple):
    """A file that is not taken: its path below the folder of the pictures, and the reason."""

    path: str
    reason: str


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out: it begins with a dot, or is one of SYSTEMS."""
    return name.startswith(".") or name.lower() in SYSTEMS


def files_in(folder: Path) -> Iterator[Found]:
    """Yield what lies in a folder and below, by name, files before folders; what is not taken with its reason.

    Of a hidden folder, and of one that may not be read, the folder itself is given; links to folders are not followed.
    One folder's names are in memory at a time.
    """
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield Found(folder, f"it may not be read ({error.strerror})")
        return
    below: list[Path] = []
    for entry in listed:
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False) and not is_hidden(entry.name):
            below.append(path)
        else:
            yield Found(path, reason_of(entry))
    for inner in below:
        yield from files_in(inner)


def reason_of(entry: "os.DirEntry[str]") -> str:
    """Why an entry that is no folder, or a hidden one, is not taken; empty where it is."""
    if is_hidden(entry.name):
        return HIDDEN
    try:
        if not entry.is_file():  # a link that leads nowhere counts as a picture that can't be read
            kind = "" if entry.is_symlink() and not Path(entry.path).exists() else irregular_kind(entry.stat().st_mode)
            if kind:
                return f"it is {'a link to ' if entry.is_symlink() else ''}{kind}{NOT_A_FILE}"
    except OSError as error:
        return f"it may not be read ({error.strerror})"
    suffix = Path(entry.name).suffix
    if suffix.lower() in SUFFIXES:
        return ""
    return f"no picture's name ends in {suffix}" if suffix else "its name has no suffix, such as .jpg"


class Tally:
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
        if len(names) < NAMED:
            names.append(name)

    def __len__(self) -> int:
        return self.counts.total()

    def __str__(self) -> str:
        """The reasons with their counts, the most frequent first."""
        return "; ".join(f"{reason} ({count:,})" for reason, count in self.counts.most_common())

    def named(self) -> list[tuple[str, str]]:
        """Ten names with their reasons at most, of each reason as many as of the others."""
        share = max(1, NAMED // max(1, len(self.names)))
        return [(name, reason) for reason, _ in self.counts.most_common() for name in self.names[reason][:share]][
            :NAMED
        ]
