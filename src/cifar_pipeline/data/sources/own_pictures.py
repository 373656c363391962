"""Pictures of one's own, which stay where they are: listed by a subclass, brought to one size by `preprocess`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cifar_pipeline.config.watched import refuse_linked_folders
from cifar_pipeline.console import Refusal, warn
from cifar_pipeline.data.official import TEST, VAL, Indices, Official
from cifar_pipeline.data.pictures import limit_pixels
from cifar_pipeline.data.resized import Place, Resized
from cifar_pipeline.data.split import stratified_split

CACHE = Path(".cache/pictures")
# What data/raw holds in place of files.
NOTE = "place.txt"
WORDS = "The pictures stay in the folder that `pictures` in params.yaml names.\n"
CHANNELS = 3
SHOWN = 10


@dataclass(frozen=True)
class Listed:
    """A picture's path below the root, its class, and its part ("": not said)."""

    path: str
    label: str
    part: str = ""


class OwnPictures(ABC):
    """A source of pictures in a folder.

    `root` is the folder; `size` the height and width that pictures are brought to, by `fit` ("crop" or "pad").
    `test_fraction` of them, drawn by `split_seed` evenly from every class, is the test part where none is named.
    Up to `max_bad` files that give no picture are left out; a picture has at most `most_megapixels`.
    """

    name: str
    origin = "pictures of one's own"

    def __init__(
        self,
        root: str,
        size: int,
        fit: str,
        test_fraction: float,
        split_seed: int,
        max_bad: int,
        most_megapixels: float,
    ) -> None:
        self.root, self.shape, self.fit = Path(root).expanduser(), (size, size, CHANNELS), fit
        self.test_fraction, self.split_seed = test_fraction, split_seed
        self.max_bad, self.most_megapixels = max_bad, most_megapixels

    @property
    def title(self) -> str:
        return self.root.resolve().name

    @abstractmethod
    def listed(self) -> list[Listed]:
        """All pictures, in an order that follows from their names alone. Raises Refusal where that can't be said."""

    def fetch(self, folder: Path, mirrors: list[str], timeout: float, cache: Path) -> str:
        """Look whether the pictures are there, and leave a note in `folder`. Raises Refusal where they aren't."""
        listed = self._checked()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / NOTE).write_text(WORDS)
        return f"{self.root} ({len(listed):,} files of {len(_classes(listed))} classes, which stay there)"

    def is_complete(self, folder: Path) -> bool:
        """Whether the note lies in `folder`."""
        note = folder / NOTE
        return note.is_file() and note.read_text() == WORDS

    def read(self, folder: Path) -> Official:
        """Bring all pictures to one size; those that haven't changed since the last time were kept.

        Raises Refusal where too many files are unreadable, or a part or a class is left without pictures.
        """
        listed = self._checked()
        limit_pixels(self.most_megapixels, "data.most_megapixels")
        resized = Resized(CACHE, self.shape, self.fit)
        places = resized.take([self.root / one.path for one in listed])
        self._refuse_bad({one.path: place for one, place in zip(listed, places, strict=True) if isinstance(place, str)})
        good = [(one, place) for one, place in zip(listed, places, strict=True) if isinstance(place, Place)]
        return self._parted([one for one, _ in good], [place for _, place in good], resized)

    def _checked(self) -> list[Listed]:
        if not self.root.is_dir():
            raise Refusal(
                f"There is no folder {self.root}: write `pictures: FOLDER` in params.yaml, with your pictures in it."
            )
        refuse_linked_folders(self.root)
        listed = self.listed()
        classes = _classes(listed)
        if len(classes) < 2:
            only = f" but {classes[0]}" if classes else ""
            raise Refusal(f"{self.root} holds no class{only}: {self.wanted}")
        return listed

    @property
    @abstractmethod
    def wanted(self) -> str:
        """What the root must hold, as the end of a sentence."""

    def _refuse_bad(self, bad: dict[str, str]) -> None:
        for path, reason in list(bad.items())[:SHOWN]:
            warn(f"{self.root / path}: {reason}.")
        if len(bad) > SHOWN:
            warn(f"... and {len(bad) - SHOWN:,} more.")
        if len(bad) > self.max_bad:
            raise Refusal(
                f"{len(bad):,} files give no picture, more than data.max_bad={self.max_bad}: mend or remove them, or "
                f"write `overrides: {{data: {{max_bad: {len(bad)}}}}}` in params.yaml to leave them out."
            )
        if bad:
            warn(f"Left out: {len(bad):,} of at most {self.max_bad:,} (data.max_bad).")

    def _parted(self, listed: list[Listed], places: list[Place], resized: Resized) -> Official:
        classes = _classes(listed)
        number_of = {name: number for number, name in enumerate(classes)}
        labels = np.array([number_of[one.label] for one in listed], np.int64)
        parts = np.array([one.part for one in listed])
        test = np.flatnonzero(parts == TEST)
        train = np.flatnonzero(parts != TEST)
        if not len(test):
            candidates = np.flatnonzero(parts != VAL)
            _, drawn = stratified_split(
                labels[candidates], self.test_fraction, self.split_seed, classes, "data.test_fraction"
            )
            test = candidates[drawn]
            train = np.setdiff1d(train, test)
        held_back = np.flatnonzero(parts[train] == VAL)
        self._refuse_untrained(classes, labels[train][parts[train] != VAL])

        def of(indices: Indices) -> tuple[tuple[str, ...], list[Place]]:
            return tuple(listed[index].path for index in indices), [places[index] for index in indices]

        (train_names, train_places), (test_names, test_places) = of(train), of(test)
        return Official(
            classes=tuple(classes),
            train_images=resized.rows(train_places),
            train_labels=labels[train],
            test_images=resized.rows(test_places),
            test_labels=labels[test],
            held_back=held_back if len(held_back) else None,
            train_names=train_names,
            test_names=test_names,
            fit=self.fit,
        )

    def _refuse_untrained(self, classes: Sequence[str], labels: np.ndarray) -> None:
        trained = set(labels.tolist())
        untrained = [name for number, name in enumerate(classes) if number not in trained]
        if untrained:
            raise Refusal(
                f"{self.root} has no training pictures of {', '.join(untrained)}: add some, or remove the class from "
                "the other parts."
            )


def _classes(listed: Sequence[Listed]) -> list[str]:
    """The names of the classes; their order is that of the labels."""
    return sorted({one.label for one in listed})
