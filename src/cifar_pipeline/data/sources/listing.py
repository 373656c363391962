"""What a source of pictures lists before any of them is opened, and what must be left of it once all were."""

import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cifar_pipeline.console import Refusal, say, warn
from cifar_pipeline.data.folders import HIDDEN, NOT_A_FILE, Skipped, Tally
from cifar_pipeline.data.official import TEST, TRAIN

SHOWN = 10
NO_PICTURE_OUTSIDE = "it lies in no class's folder, and is not named like a picture"
# Reasons that are counted on the screen without a name: no picture was meant.
UNNAMED = (HIDDEN, NO_PICTURE_OUTSIDE)


@dataclass(frozen=True)
class Listed:
    """A picture's path below the root, its class, and its part ("": not said)."""

    path: str
    label: str
    part: str = ""


class Group(NamedTuple):
    """The pictures of one class in one part ("": not said), and the place that names it."""

    label: str
    part: str
    place: str


@dataclass(frozen=True)
class Listing:
    """All pictures by their names, what was skipped, and the groups that were named, those without pictures too."""

    pictures: list[Listed]
    skipped: list[Skipped] = field(default_factory=list)
    groups: dict[tuple[str, str], Group] = field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        """The names of the classes; their order is that of the labels."""
        return sorted({label for label, _ in self.groups} | {one.label for one in self.pictures})


def require_left(listing: Listing, left: Iterable[Listed], bad: Sequence[Skipped]) -> None:
    """Refuse where a class, or a class of a part that was given, has lost all its pictures.

    `left` are the pictures that could be read, `bad` those that could not. Raises Refusal with the reasons.
    """
    kept = {(one.label, one.part) for one in left}
    lost = [group for key, group in listing.groups.items() if key not in kept]
    if not lost:
        return
    group_of = {one.path: (one.label, one.part) for one in listing.pictures}
    sentences = []
    for group in lost[:SHOWN]:
        own = [one for one in bad if group_of.get(one.path) == (group.label, group.part)]
        own += [one for one in listing.skipped if one.path.startswith(f"{group.place}/")]
        why = f"{len(own):,} {'file' if len(own) == 1 else 'files'}: {Tally(own)}" if own else "nothing is in it"
        sentences.append(f"{group.place} [{why}]")
    more = f" and {len(lost) - SHOWN:,} more" if len(lost) > SHOWN else ""
    raise Refusal(
        f"No picture is left in {', '.join(sentences)}{more}: mend these files, add pictures, or remove the class."
    )


def say_skipped(skipped: Sequence[Skipped], table: str) -> None:
    """Name up to ten of the files that are not taken, and count all of them by reason; `table` has the whole list."""
    named = Tally(one for one in skipped if one.reason not in UNNAMED)
    for path, reason in named.named():
        warn(f"{path}: {reason}.")
    if named:
        warn(f"Not taken: {len(named):,} files, all in {table}: {named}.")
    if others := Tally(one for one in skipped if one.reason in UNNAMED):
        say(f"Passed over: {len(others):,} files: {others}.")


def refuse_unreadable_by_dvc(skipped: Sequence[Skipped]) -> None:
    """Refuse pipes, sockets and devices among the pictures: DVC reads whatever lies there, and waits for ever."""
    for path, reason in skipped:
        if reason.endswith(NOT_A_FILE):
            raise Refusal(f"{path}: {reason}. DVC, which reads all that lies there, would wait for it: remove it.")


def refuse_undecodable(paths: Iterable[str], root: Path) -> None:
    """Refuse a name below `root` that is no UTF-8: DVC cannot hash it, and no text file can hold it."""
    for path in paths:
        if not path.isascii() and path != (readable := path.encode(errors="backslashreplace").decode()):
            raise Refusal(f"{root / readable}: this name is not UTF-8, which DVC cannot read: rename it.")


def refuse_look_alikes(classes: Collection[str]) -> None:
    """Refuse two names of classes that look the same, and warn about two that differ in case alone."""
    looks: dict[str, str] = {}
    folded: dict[str, str] = {}
    for name in sorted(classes):
        look = " ".join(unicodedata.normalize("NFC", name).split())
        if (other := looks.setdefault(look, name)) != name:
            raise Refusal(f"The classes {other!a} and {name!a} look the same ({look}): give both one name.")
        if (other := folded.setdefault(look.casefold(), name)) != name:
            warn(f"The classes {other} and {name} differ in upper and lower case alone; they are two classes.")


def warn_of_missing(parts: dict[str, set[str]], classes: Sequence[str]) -> None:
    """Warn where a part that was given lacks a class, which is then neither chosen by nor measured."""
    for part, present in parts.items():
        missing = [name for name in classes if name not in present]
        if missing and present and part != TRAIN:
            what = "measured" if part == TEST else "chosen by"
            warn(f"The {part} part has no picture of {', '.join(missing[:SHOWN])}: it is not {what} there.")
