"""Pictures of one's own, which stay where they are: listed by a subclass, brought to one size by `preprocess`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from cifar_pipeline.config.watched import refuse_linked_folders
from cifar_pipeline.console import Refusal, warn
from cifar_pipeline.data.folders import Skipped
from cifar_pipeline.data.official import TEST, VAL, Indices, Official
from cifar_pipeline.data.pictures import limit_pixels
from cifar_pipeline.data.resized import Place, Resized
from cifar_pipeline.data.sources.listing import (
    Listed,
    Listing,
    refuse_look_alikes,
    refuse_undecodable,
    refuse_unreadable_by_dvc,
    require_left,
    say_skipped,
    warn_of_missing,
)
from cifar_pipeline.data.split import stratified_split

CACHE = Path(".cache/pictures")
# What data/raw holds in place of files.
NOTE = "place.txt"
WORDS = "The pictures stay in the folder that `pictures` in params.yaml names.\n"
CHANNELS = 3
# What `preprocess` makes of `skipped`.
TABLE = "reports/skipped.csv"


class OwnPictures(ABC):
    """A source of pictures in a folder.

    `root` is the folder; `size` the height and width that pictures are brought to, by `fit` ("crop" or "pad").
    `test_fraction` of them, drawn by `split_seed` evenly from every class, is the test part where none is named.
    Up to `max_bad` files that give no picture are left out; a picture has at most `most_megapixels`.
    `skipped` has all files that the last `read` did not take, each with its reason.
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
        self.skipped: list[Skipped] = []

    @property
    def title(self) -> str:
        # The folder that a link leads to may have a name that is no UTF-8.
        return self.root.resolve().name.encode(errors="backslashreplace").decode()

    @abstractmethod
    def listed(self) -> Listing:
        """All pictures, in an order that follows from their names alone. Raises Refusal where that can't be said."""

    def fetch(self, folder: Path, mirrors: list[str], timeout: float, cache: Path) -> str:
        """Look whether the pictures are there, and leave a note in `folder`. Raises Refusal where they aren't."""
        listing = self._checked()
        refuse_unreadable_by_dvc(self.skipped)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / NOTE).write_text(WORDS)
        return f"{self.root} ({len(listing.pictures):,} files of {len(listing.classes)} classes, which stay there)"

    def is_complete(self, folder: Path) -> bool:
        """Whether the note lies in `folder`."""
        note = folder / NOTE
        return note.is_file() and note.read_text() == WORDS

    def read(self, folder: Path) -> Official:
        """Bring all pictures to one size; those that haven't changed since the last time were kept.

        Raises Refusal where too many files are unreadable, or a part or a class is left without pictures.
        """
        listing = self._checked()
        limit_pixels(self.most_megapixels, "data.most_megapixels")
        resized = Resized(CACHE, self.shape, self.fit)
        found = resized.take([self.root / one.path for one in listing.pictures])
        pairs = list(zip(listing.pictures, found, strict=True))
        bad = [Skipped(one.path, place) for one, place in pairs if isinstance(place, str)]
        good = [(one, place) for one, place in pairs if isinstance(place, Place)]
        self.skipped += self._named(bad)
        say_skipped(self.skipped, TABLE)
        # Before the number of bad files is looked at, because this says more.
        require_left(listing, (one for one, _ in good), bad)
        self._refuse_bad(len(bad))
        return self._parted([one for one, _ in good], [place for _, place in good], resized)

    def _checked(self) -> Listing:
        if not self.root.is_dir():
            raise Refusal(
                f"There is no folder {self.root}: write `pictures: FOLDER` in params.yaml, with your pictures in it."
            )
        refuse_linked_folders(self.root)
        listing = self.listed()
        places = [group.place for group in listing.groups.values()]
        paths = ((one.path for one in listing.pictures), (one.path for one in listing.skipped))
        refuse_undecodable(chain(places, *paths), self.root)
        self.skipped = self._named(listing.skipped)
        classes = listing.classes
        if len(classes) < 2:
            only = f" but {classes[0]}" if classes else ""
            raise Refusal(f"{self.root} holds no class{only}: {self.wanted}")
        refuse_look_alikes(classes)
        require_left(listing, listing.pictures, [])
        return listing

    def _named(self, skipped: Sequence[Skipped]) -> list[Skipped]:
        """The same with paths that a person can open."""
        return [Skipped(str(self.root / path), reason) for path, reason in skipped]

    @property
    @abstractmethod
    def wanted(self) -> str:
        """What the root must hold, as the end of a sentence."""

    def _refuse_bad(self, bad: int) -> None:
        if bad > self.max_bad:
            raise Refusal(
                f"{bad:,} files give no picture, more than data.max_bad={self.max_bad}: mend or remove them, or "
                f"write `overrides: {{data: {{max_bad: {bad}}}}}` in params.yaml to leave them out."
            )
        if bad:
            warn(f"Left out: {bad:,} of at most {self.max_bad:,} (data.max_bad).")

    def _parted(self, listed: list[Listed], places: list[Place], resized: Resized) -> Official:
        classes = sorted({one.label for one in listed})
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
        warn_of_missing(
            {part: {classes[label] for label in set(labels[parts == part].tolist())} for part in (VAL, TEST)}, classes
        )

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
