"""Define the interface of data sources, and fetch one into data/raw or fall back to another.

A new dataset is a class with the members of `Source`. It reads a `RawDataset`: the official training and test images,
before a validation split.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cifar_pipeline.utils.atomic import atomic_replace_dir, exclusive_lock
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.git import RESTORE_COMMAND

log = logging.getLogger(__name__)

TRAIN, VAL, TEST = SPLITS = ("train", "val", "test")

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Indices = NDArray[np.int64]

CROP, PAD, STRETCH = RESIZE_MODES = ("crop", "pad", "stretch")


class LazyImages(Protocol):
    """Images `[N, H, W, C] uint8` that are read when they are indexed, because they may not fit into memory."""

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
    """The official training and test images with their labels.

    Attributes:
        classes: names in the order of the labels.
        train_images, test_images: `[N, H, W, C] uint8`.
        train_labels, test_labels: `[N] int64`.
        val_indices: the training images of the validation split, if the source defines one.
        train_names, test_names: the names of the image files, if the images come from files.
        train_groups: the group of each training image, none of which may be in two splits; empty without groups.
        resize_mode: how the image files were resized.

    Raises UserError if a custom source passes anything else.
    """

    classes: tuple[str, ...]
    train_images: Images | LazyImages
    train_labels: Labels
    test_images: Images | LazyImages
    test_labels: Labels
    val_indices: Indices | None = None
    train_names: tuple[str, ...] = ()
    test_names: tuple[str, ...] = ()
    train_groups: tuple[str, ...] = ()
    resize_mode: str = CROP

    def __post_init__(self) -> None:
        splits = {
            "training": (self.train_images, self.train_labels),
            "test": (self.test_images, self.test_labels),
        }
        for split, (images, labels) in splits.items():
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self.train_images.shape[1:]:
                raise UserError(
                    f"The {split} images are {images.dtype} {list(images.shape)}: a source must return uint8 "
                    "[N, H, W, C], of the same size for training and test."
                )
            if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
                raise UserError(
                    f"The {split} labels are {labels.dtype} {list(labels.shape)} for {len(images)} images: a source "
                    "must return int64 [N], one for each image."
                )
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
                raise UserError(
                    f"The {split} labels range from {labels.min()} to {labels.max()}: a source with "
                    f"{len(self.classes)} classes must number them from 0 to {len(self.classes) - 1}."
                )
        if self.train_groups and len(self.train_groups) != len(self.train_labels):
            raise UserError(
                f"There are {len(self.train_groups)} groups for {len(self.train_labels)} training images: a source "
                "must return one for each image, or none."
            )


class Source(Protocol):
    """A dataset that can be fetched, checked and read.

    `name` is the folder in data/raw, `title` is for display, `origin` is the citation. They must not depend on the
    mirror that the files came from, because they are part of the trained model's fingerprint.
    """

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def origin(self) -> str: ...

    def fetch(self, folder: Path, mirrors: list[str], timeout: float, cache: Path) -> str:
        """Put the verified files into `folder` (all or none) and return a description of where they came from.

        `timeout` is in seconds; `cache` is a folder for partial downloads. Raises AllSourcesFailed.
        """
        ...

    def is_complete(self, folder: Path) -> bool:
        """Return whether `folder` contains exactly the expected files, with the expected content."""
        ...

    def read(self, folder: Path) -> RawDataset:
        """Read the files that `fetch` put into `folder`. Raises UserError if they have changed."""
        ...


class SourceError(Exception):
    """One mirror or path failed. The message is the reason, without the mirror's name."""


class AllSourcesFailed(Exception):
    """All mirrors and paths failed. `reasons` is a list of (mirror or path, reason), in the order of the attempts."""

    def __init__(self, title: str, reasons: list[tuple[str, str]]) -> None:
        super().__init__(f"{title} could not be fetched")
        self.title = title
        self.reasons = reasons


def download_options(data: Mapping[str, Any]) -> tuple[list[str], float]:
    """Return the mirrors and the timeout in seconds of the group `data`; a local source has neither."""
    return list(data.get("mirrors", ())), data.get("timeout", 0)


def fetch_or_fallback(
    raw_dir: Path,
    source: Source,
    fallback: Source | None,
    mirrors: list[str],
    timeout: float,
    cache: Path,
    last_check: Callable[[], None] = lambda: None,
) -> Source:
    """Fetch `source` into `raw_dir`, or `fallback` if all mirrors fail, and return the one that was fetched.

    Valid files are kept. `timeout` is in seconds; `cache` keeps partial downloads. `last_check` is called before new
    files replace those in `raw_dir`, and may raise.
    Raises UserError, and leaves `raw_dir` unchanged, if both fail.
    """
    try:
        fetch(raw_dir, source, mirrors, timeout, cache, last_check)
        return source
    except AllSourcesFailed as failure:
        log_failure(failure)
        if fallback is None:
            raise UserError(
                f"{source.title} could not be fetched and data.fallback is null: set {source.name.upper()}_SOURCE to "
                "an archive, a folder or a URL of it, or choose a fallback (data/source@data.fallback=digits)."
            ) from failure
    log.warning(f"Continuing with {fallback.title} instead of {source.title} (data.fallback).")
    try:
        fetch(raw_dir, fallback, [], timeout, cache, last_check)
    except AllSourcesFailed as failure:
        log_failure(failure)
        raise UserError(
            f"Neither {source.title} nor {fallback.title} could be fetched: see the lines above."
        ) from failure
    log.warning(
        f"To get the real data later: `make {source.name}` (or `dvc repro -f download && dvc repro`); to get the "
        f"published results in a git clone: `{RESTORE_COMMAND}`."
    )
    return fallback


def available_source(raw_dir: Path, source: Source, fallback: Source | None) -> Source:
    """Return whichever of `source` and `fallback` has its files in `raw_dir`. Raises UserError if neither has."""
    for candidate in (source, fallback):
        if candidate is not None and candidate.is_complete(raw_dir / candidate.name):
            return candidate
    files = f"neither the files of {source.title} nor those of {fallback.title}" if fallback else ""
    raise UserError(
        f"{raw_dir} contains {files or f'no files of {source.title}'}: run `dvc repro -f download` to fetch them."
    )


def fetch(
    raw_dir: Path,
    source: Source,
    mirrors: list[str],
    timeout: float,
    cache: Path,
    last_check: Callable[[], None] = lambda: None,
) -> None:
    """Fetch `source` into `raw_dir`, without a fallback; valid files are kept. Raises AllSourcesFailed."""
    if _is_present(raw_dir, source):
        return
    with exclusive_lock(raw_dir):
        # Checked again, because the process that held the lock may have fetched it and others may be reading it.
        if _is_present(raw_dir, source):
            return
        with atomic_replace_dir(raw_dir) as new:
            origin = source.fetch(new / source.name, mirrors, timeout, cache)
            last_check()
    log.info(f"{source.title}: verified, from {origin}.")


def _is_present(raw_dir: Path, source: Source) -> bool:
    """Return whether `raw_dir` contains the verified files of `source` and nothing else, and log it if so."""
    is_only = raw_dir.is_dir() and {path.name for path in raw_dir.iterdir()} == {source.name}
    if not (is_only and source.is_complete(raw_dir / source.name)):
        return False
    log.info(f"{source.title}: already in {raw_dir / source.name}, verified.")
    return True


def log_failure(failure: AllSourcesFailed) -> None:
    """Log which mirrors and paths failed, and why."""
    log.warning(
        f"{failure.title} could not be fetched:"
        if failure.reasons
        else f"{failure.title} could not be fetched: no mirror is configured."
    )
    for mirror, reason in failure.reasons:
        log.warning(f"  {mirror}: {reason}")
