"""What a source of data offers: three functions and its names. A new kind of data is a new class that has them.

What every source yields: a data set as it was published, before anything is held back from its training part.

How bringing data can fail, told apart from bugs: one place is no good, or none is.

data/raw: the published files of the one data set in use, and the way out when they cannot be had.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cifar_pipeline.data.images import CROP
from cifar_pipeline.utils.atomic import atomic_replace_dir, exclusive_lock
from cifar_pipeline.utils.console import info, warning
from cifar_pipeline.utils.errors import UserError

TRAIN, VAL, TEST = SPLITS = ("train", "val", "test")

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Indices = NDArray[np.int64]


class LazyImages(Protocol):
    """Images `[N, H, W, C] uint8` that are read when they are asked for: more than memory may hold."""

    @property
    def dtype(self) -> np.dtype[np.uint8]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, indices: Indices, /) -> Images: ...


@dataclass(frozen=True)
class RawDataset:
    """The official training and test parts.

    `classes` are the names in the order of the labels; images are `[N, H, W, C] uint8`, labels `[N] int64`. Where the
    source says itself which training images are to choose by, `held_back` has their indices. `train_names` and
    `test_names` are the images' files, if they had any; `fit` says how they were brought to their size.
    Raises Refusal where a source of one's own yields anything else.
    """

    classes: tuple[str, ...]
    train_images: Images | LazyImages
    train_labels: Labels
    test_images: Images | LazyImages
    test_labels: Labels
    val_indices: Indices | None = None
    train_names: tuple[str, ...] = ()
    test_names: tuple[str, ...] = ()
    resize_mode: str = CROP

    def __post_init__(self) -> None:
        parts = {
            "training": (self.train_images, self.train_labels),
            "test": (self.test_images, self.test_labels),
        }
        for part, (images, labels) in parts.items():
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self.train_images.shape[1:]:
                raise UserError(
                    f"The images of the {part} part are {images.dtype} {list(images.shape)}: a source must yield uint8 "
                    "[N, H, W, C], of one size in both parts."
                )
            if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
                raise UserError(
                    f"The labels of the {part} part are {labels.dtype} {list(labels.shape)} for {len(images)} images: "
                    "a source must yield int64 [N], one for each image."
                )
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
                raise UserError(
                    f"The labels of the {part} part run from {labels.min()} to {labels.max()}: a source of "
                    f"{len(self.classes)} classes must number them from 0 to {len(self.classes) - 1}."
                )


class Source(Protocol):
    """A published data set: where it comes from, whether it is there, what is in it.

    `name` is the folder in data/raw, `title` what a person reads, `origin` who made it. None of them may depend on the
    route by which the files came, since the trained model's fingerprint follows from them.
    """

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def origin(self) -> str: ...

    def fetch(self, folder: Path, mirrors: list[str], timeout: float, cache: Path) -> str:
        """Put the verified files into `folder` (all or none) and return in words where they came from.

        `timeout` is in seconds; `cache` is a folder for what is not complete yet. Raises failures.Unavailable.
        """
        ...

    def is_complete(self, folder: Path) -> bool:
        """Whether `folder` holds the right files, every byte of them, and no others."""
        ...

    def read(self, folder: Path) -> RawDataset:
        """Read what `fetch` put there. Raises Refusal for files that are not the right ones."""
        ...


class SourceError(Exception):
    """One place does not give the data. The message says why, without naming the place."""


class AllSourcesFailed(Exception):
    """No place gives the data.

    `reasons` holds a pair for each place that was tried, in order: the place and why it was given up.
    """

    def __init__(self, title: str, reasons: list[tuple[str, str]]) -> None:
        super().__init__(f"no source of {title} answers")
        self.title = title
        self.reasons = reasons


def fetch_or_fallback(
    raw: Path,
    source: Source,
    fallback: Source | None,
    mirrors: list[str],
    timeout: float,
    cache: Path,
    last_check: Callable[[], None] = lambda: None,
) -> Source:
    """Make `raw` hold the files of `source`, or of `fallback` where no place gives them, and return the one it holds.

    Files that are there and valid are kept. `timeout` is in seconds; `cache` keeps partial downloads. `last_check` is
    called before new files take the place of `raw`, and may raise.
    Raises Refusal when there is neither; `raw` is then as it was.
    """
    try:
        _fetch_into(raw, source, mirrors, timeout, cache, last_check)
        return source
    except AllSourcesFailed as failure:
        _report(failure)
        if fallback is None:
            raise UserError(
                f"{source.title} cannot be had and data.fallback is null: set {source.name.upper()}_SOURCE to an "
                "archive, a folder or an address that has it, or choose a fallback (data/source@data.fallback=digits)."
            ) from failure
    warning(f"Going on with {fallback.title} instead of {source.title}, as data.fallback says.")
    try:
        _fetch_into(raw, fallback, [], timeout, cache, last_check)
    except AllSourcesFailed as failure:
        _report(failure)
        raise UserError(f"Neither {source.title} nor {fallback.title} can be had: see the lines above.") from failure
    warning(
        f"The real data later: `make {source.name}` (or `dvc repro -f download && dvc repro`); in a git clone, the "
        "published results: `git restore dvc.lock reports`."
    )
    return fallback


def available_source(raw: Path, source: Source, fallback: Source | None) -> Source:
    """Return whichever of `source` and `fallback` has its files in `raw`. Raises Refusal when neither has."""
    for candidate in (source, fallback):
        if candidate is not None and candidate.is_complete(raw / candidate.name):
            return candidate
    titles = source.title + (f" nor of {fallback.title}" if fallback else "")
    raise UserError(f"{raw} does not hold the files of {titles}: `dvc repro -f download` brings them.")


def _fetch_into(
    raw: Path, source: Source, mirrors: list[str], timeout: float, cache: Path, last_check: Callable[[], None]
) -> None:
    if _is_there(raw, source):
        return
    with exclusive_lock(raw):
        # Asked again: the process that was waited for may have brought it, and others may read it by now.
        if _is_there(raw, source):
            return
        with atomic_replace_dir(raw) as new:
            place = source.fetch(new / source.name, mirrors, timeout, cache)
            last_check()
    info(f"{source.title}: verified, from {place}.")


def _is_there(raw: Path, source: Source) -> bool:
    """Whether `raw` holds the verified files of `source` and nothing else; it is said where it does."""
    alone = raw.is_dir() and {path.name for path in raw.iterdir()} == {source.name}
    if not (alone and source.is_complete(raw / source.name)):
        return False
    info(f"{source.title}: already in {raw / source.name}, verified.")
    return True


def _report(failure: AllSourcesFailed) -> None:
    warning(
        f"{failure.title} cannot be had:" if failure.reasons else f"{failure.title} cannot be had: no place is named."
    )
    for place, why in failure.reasons:
        warning(f"  {place}: {why}")
