"""Images of one's own, which stay where they are: listed by a subclass, brought to one size by `preprocess`.

What a source of images lists before any of them is opened, and what must be left of it once all were.

Image files brought to one size, and kept by their content: a file that hasn't changed is never resized twice.

    .cache/images/KEY/32x32x3-crop/NAME.npy     some hundred images [N, H, W, C] uint8
    .cache/images/KEY/32x32x3-crop/NAME.json    the SHA-256 of each one's file

KEY is a hash of what made the pixels: the code that reads and resizes, the versions of the libraries that decode, and
the limit on an image's size. Images under another key are removed, so one process at a time may use a cache.

Whatever the number of images, a shard for each core and no more of them are in memory.
"""

import json
import shutil
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from io import BytesIO
from itertools import chain
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cifar_pipeline.config.compose import available_cores
from cifar_pipeline.config.dvc_inputs import reject_linked_folders
from cifar_pipeline.config.source_files import loaded_sources
from cifar_pipeline.data.dataset import rows_per_chunk
from cifar_pipeline.data.image_paths import HIDDEN, NOT_A_FILE, SkipCounts, SkippedFile
from cifar_pipeline.data.images import UnreadableImage, decoders, load_image, read_bytes, set_max_megapixels
from cifar_pipeline.data.preprocessing import stratified_split
from cifar_pipeline.data.sources.base import TEST, TRAIN, VAL, Indices, RawDataset
from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.console import info, progress_bar, warning
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.safe_io import parse_json

Shape = tuple[int, int, int]

MAX_SHARD_IMAGES = 512


@dataclass(frozen=True)
class ShardRow:
    """Where an image lies: the name of a shard and its row there."""

    shard: str
    row: int


@dataclass(frozen=True)
class ShardedImages:
    """Images `[N, H, W, C] uint8` that lie in shards, read when they are asked for, as an array would be."""

    folder: Path
    places: tuple[ShardRow, ...]
    image: Shape

    dtype = np.dtype(np.uint8)
    ndim = 4

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self.places), *self.image)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images at `indices` `[M]`, in their order."""
        pictures = np.empty((len(indices), *self.image), np.uint8)
        asked: dict[str, list[tuple[int, int]]] = {}
        for position, index in enumerate(indices):
            place = self.places[index]
            asked.setdefault(place.shard, []).append((position, place.row))
        for shard, pairs in asked.items():
            positions, rows = map(list, zip(*pairs, strict=True))
            pictures[positions] = np.load(self.folder / f"{shard}.npy", mmap_mode="r")[rows]
        return pictures


class ResizedImageCache:
    """The images of one size and resize_mode that `cache` keeps, as the code of today makes them."""

    def __init__(self, cache: Path, shape: Shape, resize_mode: str) -> None:
        self.shape, self.resize_mode = shape, resize_mode
        self.folder = cache / cache_key() / f"{'x'.join(map(str, shape))}-{resize_mode}"
        _remove_other_keys(self.folder.parent)
        self.known = dict(self._kept())

    def take(self, files: Sequence[Path]) -> list[ShardRow | str]:
        """Resize what isn't kept yet, on all cores, and return each file's place, or why it gives no image."""
        size = min(MAX_SHARD_IMAGES, rows_per_chunk(prod(self.shape)))
        blocks = [files[start : start + size] for start in range(0, len(files), size)]
        places: list[ShardRow | str] = []
        with ThreadPoolExecutor(available_cores()) as pool, progress_bar("Reading images", len(files)) as advance:
            try:
                for found in pool.map(self._block, blocks):
                    places += found
                    advance(len(found))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        self._forget_others({place.shard for place in places if isinstance(place, ShardRow)})
        return places

    def rows(self, places: Sequence[ShardRow]) -> ShardedImages:
        """The images at these places."""
        return ShardedImages(self.folder, tuple(places), self.shape)

    def _block(self, files: Sequence[Path]) -> list[ShardRow | str]:
        """The places of some files, the new ones among them written as one shard."""
        found, new = [], dict[str, NDArray[np.uint8]]()
        for file in files:
            try:
                content = read_bytes(file)
                digest = sha256(content).hexdigest()
                if digest not in self.known and digest not in new:
                    new[digest] = load_image(BytesIO(content), self.shape, self.resize_mode)
                found.append((digest, ""))
            except UnreadableImage as error:
                found.append(("", str(error)))
        written = self._write(new) if new else {}
        return [reason or self.known.get(digest) or written[digest] for digest, reason in found]

    def _write(self, pictures: dict[str, NDArray[np.uint8]]) -> dict[str, ShardRow]:
        digests = list(pictures)
        name = sha256(" ".join(digests).encode()).hexdigest()[:16]
        with atomic_write(self.folder / f"{name}.npy") as part:
            np.save(part, np.stack(list(pictures.values())), allow_pickle=False)
        # The last, so that there is no list without its images.
        with atomic_write(self.folder / f"{name}.json") as part:
            part.write_text(json.dumps(digests))
        return {digest: ShardRow(name, row) for row, digest in enumerate(digests)}

    def _kept(self) -> Iterator[tuple[str, ShardRow]]:
        for listed in self.folder.glob("*.json"):
            try:
                digests = parse_json(listed.read_text())
                pictures = np.load(listed.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
                is_whole = pictures.shape == (len(digests), *self.shape) and pictures.dtype == np.uint8
            except (OSError, ValueError, EOFError):
                is_whole = False
            if is_whole:
                yield from ((digest, ShardRow(listed.stem, row)) for row, digest in enumerate(digests))

    def _forget_others(self, used: set[str]) -> None:
        """Remove the shards of which nothing is used any more."""
        for path in [*self.folder.glob("*.json"), *self.folder.glob("*.npy")]:
            if path.stem not in used and not path.name.startswith("."):
                path.unlink(missing_ok=True)


def cache_key() -> str:
    """16 hexadecimal digits that stand for all that decides an image's pixels but its file, its size and its fit."""
    code = loaded_sources().used(__name__).hashes
    return sha256(json.dumps([code, decoders()], sort_keys=True).encode()).hexdigest()[:16]


def _remove_other_keys(kept: Path) -> None:
    """Remove what other code or other libraries made."""
    for path in kept.parent.iterdir() if kept.parent.is_dir() else ():
        if path.is_dir() and path != kept:
            shutil.rmtree(path, ignore_errors=True)


MAX_SHOWN = 10
NO_IMAGES_OUTSIDE = "it lies in no class's folder, and is not named like an image"
# Reasons that are counted on the screen without a name: no image was meant.
UNLABELED = (HIDDEN, NO_IMAGES_OUTSIDE)


@dataclass(frozen=True)
class ImageEntry:
    """An image's path below the root, its class, and its part ("": not said)."""

    path: str
    label: str
    part: str = ""


class Group(NamedTuple):
    """The images of one class in one part ("": not said), and the place that names it."""

    label: str
    part: str
    place: str


@dataclass(frozen=True)
class Listing:
    """All images by their names, what was skipped, and the groups that were named, those without images too."""

    images: list[ImageEntry]
    skipped: list[SkippedFile] = field(default_factory=list)
    groups: dict[tuple[str, str], Group] = field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        """The names of the classes; their order is that of the labels."""
        return sorted({label for label, _ in self.groups} | {one.label for one in self.images})


def require_usable_images(listing: Listing, left: Iterable[ImageEntry], bad: Sequence[SkippedFile]) -> None:
    """Refuse where a class, or a class of a part that was given, has lost all its images.

    `left` are the images that could be read, `bad` those that could not. Raises Refusal with the reasons.
    """
    kept = {(one.label, one.part) for one in left}
    lost = [group for key, group in listing.groups.items() if key not in kept]
    if not lost:
        return
    group_of = {one.path: (one.label, one.part) for one in listing.images}
    sentences = []
    for group in lost[:MAX_SHOWN]:
        own = [one for one in bad if group_of.get(one.path) == (group.label, group.part)]
        own += [one for one in listing.skipped if one.path.startswith(f"{group.place}/")]
        why = f"{len(own):,} {'file' if len(own) == 1 else 'files'}: {SkipCounts(own)}" if own else "nothing is in it"
        sentences.append(f"{group.place} [{why}]")
    more = f" and {len(lost) - MAX_SHOWN:,} more" if len(lost) > MAX_SHOWN else ""
    raise UserError(
        f"No image is left in {', '.join(sentences)}{more}: mend these files, add images, or remove the class."
    )


def report_skipped(skipped: Sequence[SkippedFile], table: str) -> None:
    """Name up to ten of the files that are not taken, and count all of them by reason; `table` has the whole list."""
    named = SkipCounts(one for one in skipped if one.reason not in UNLABELED)
    for path, reason in named.named():
        warning(f"{path}: {reason}.")
    if named:
        warning(f"Not taken: {len(named):,} files, all in {table}: {named}.")
    if others := SkipCounts(one for one in skipped if one.reason in UNLABELED):
        info(f"Passed over: {len(others):,} files: {others}.")


def reject_unreadable_by_dvc(skipped: Sequence[SkippedFile]) -> None:
    """Refuse pipes, sockets and devices among the images: DVC reads whatever lies there, and waits for ever."""
    for path, reason in skipped:
        if reason.endswith(NOT_A_FILE):
            raise UserError(f"{path}: {reason}. DVC, which reads all that lies there, would wait for it: remove it.")


def reject_undecodable(paths: Iterable[str], root: Path) -> None:
    """Refuse a name below `root` that is no UTF-8: DVC cannot hash it, and no text file can hold it."""
    for path in paths:
        if not path.isascii() and path != (readable := path.encode(errors="backslashreplace").decode()):
            raise UserError(f"{root / readable}: this name is not UTF-8, which DVC cannot read: rename it.")


def reject_similar_names(classes: Collection[str]) -> None:
    """Refuse two names of classes that look the same, and warn about two that differ in case alone."""
    looks: dict[str, str] = {}
    folded: dict[str, str] = {}
    for name in sorted(classes):
        look = " ".join(unicodedata.normalize("NFC", name).split())
        if (other := looks.setdefault(look, name)) != name:
            raise UserError(f"The classes {other!a} and {name!a} look the same ({look}): give both one name.")
        if (other := folded.setdefault(look.casefold(), name)) != name:
            warning(f"The classes {other} and {name} differ in upper and lower case alone; they are two classes.")


def warn_missing_classes(parts: dict[str, set[str]], classes: Sequence[str]) -> None:
    """Warn where a part that was given lacks a class, which is then neither chosen by nor measured."""
    for part, present in parts.items():
        missing = [name for name in classes if name not in present]
        if missing and present and part != TRAIN:
            what = "measured" if part == TEST else "chosen by"
            warning(f"The {part} part has no image of {', '.join(missing[:MAX_SHOWN])}: it is not {what} there.")


CACHE = Path(".cache/images")
# What data/raw holds in place of files.
MARKER_FILE = "source.txt"
MARKER_TEXT = "The images stay in the folder that `images` in params.yaml names.\n"
CHANNELS = 3
# What `preprocess` makes of `skipped`.
SKIPPED_TABLE = "reports/skipped.csv"


class ImageFilesSource(ABC):
    """A source of images in a folder.

    `root` is the folder; `size` the height and width that images are brought to, by `fit` ("crop" or "pad").
    `test_fraction` of them, drawn by `split_seed` evenly from every class, is the test part where none is named.
    Up to `max_unreadable` files that give no image are left out; an image has at most `max_megapixels`.
    `skipped` has all files that the last `read` did not take, each with its reason.
    """

    name: str
    origin = "images of one's own"

    def __init__(
        self,
        root: str,
        size: int,
        resize_mode: str,
        test_fraction: float,
        split_seed: int,
        max_unreadable: int,
        max_megapixels: float,
    ) -> None:
        self.root, self.shape, self.resize_mode = Path(root).expanduser(), (size, size, CHANNELS), resize_mode
        self.test_fraction, self.split_seed = test_fraction, split_seed
        self.max_unreadable, self.max_megapixels = max_unreadable, max_megapixels
        self.skipped: list[SkippedFile] = []

    @property
    def title(self) -> str:
        # The folder that a link leads to may have a name that is no UTF-8.
        return self.root.resolve().name.encode(errors="backslashreplace").decode()

    @abstractmethod
    def listed(self) -> Listing:
        """All images, in an order that follows from their names alone. Raises Refusal where that can't be said."""

    def fetch(self, folder: Path, mirrors: list[str], timeout: float, cache: Path) -> str:
        """Look whether the images are there, and leave a note in `folder`. Raises Refusal where they aren't."""
        listing = self._checked()
        reject_unreadable_by_dvc(self.skipped)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER_FILE).write_text(MARKER_TEXT)
        return f"{self.root} ({len(listing.images):,} files of {len(listing.classes)} classes, which stay there)"

    def is_complete(self, folder: Path) -> bool:
        """Whether the note lies in `folder`."""
        note = folder / MARKER_FILE
        return note.is_file() and note.read_text() == MARKER_TEXT

    def read(self, folder: Path) -> RawDataset:
        """Bring all images to one size; those that haven't changed since the last time were kept.

        Raises Refusal where too many files are unreadable, or a part or a class is left without images.
        """
        listing = self._checked()
        set_max_megapixels(self.max_megapixels, "data.max_megapixels")
        resized = ResizedImageCache(CACHE, self.shape, self.resize_mode)
        found = resized.take([self.root / one.path for one in listing.images])
        pairs = list(zip(listing.images, found, strict=True))
        bad = [SkippedFile(one.path, place) for one, place in pairs if isinstance(place, str)]
        good = [(one, place) for one, place in pairs if isinstance(place, ShardRow)]
        self.skipped += self._named(bad)
        report_skipped(self.skipped, SKIPPED_TABLE)
        # Before the number of bad files is looked at, because this says more.
        require_usable_images(listing, (one for one, _ in good), bad)
        self._refuse_bad(len(bad))
        return self._parted([one for one, _ in good], [place for _, place in good], resized)

    def _checked(self) -> Listing:
        if not self.root.is_dir():
            raise UserError(
                f"There is no folder {self.root}: write `image_dir: FOLDER` in params.yaml, with your images in it."
            )
        reject_linked_folders(self.root)
        listing = self.listed()
        places = [group.place for group in listing.groups.values()]
        paths = ((one.path for one in listing.images), (one.path for one in listing.skipped))
        reject_undecodable(chain(places, *paths), self.root)
        self.skipped = self._named(listing.skipped)
        classes = listing.classes
        if len(classes) < 2:
            only = f" but {classes[0]}" if classes else ""
            raise UserError(f"{self.root} holds no class{only}: {self.wanted}")
        reject_similar_names(classes)
        require_usable_images(listing, listing.images, [])
        return listing

    def _named(self, skipped: Sequence[SkippedFile]) -> list[SkippedFile]:
        """The same with paths that a person can open."""
        return [SkippedFile(str(self.root / path), reason) for path, reason in skipped]

    @property
    @abstractmethod
    def wanted(self) -> str:
        """What the root must hold, as the end of a sentence."""

    def _refuse_bad(self, bad: int) -> None:
        if bad > self.max_unreadable:
            raise UserError(
                f"{bad:,} files give no image, more than data.max_unreadable={self.max_unreadable}: mend or remove them, or "
                f"write `overrides: {{data: {{max_unreadable: {bad}}}}}` in params.yaml to leave them out."
            )
        if bad:
            warning(f"Left out: {bad:,} of at most {self.max_unreadable:,} (data.max_unreadable).")

    def _parted(self, listed: list[ImageEntry], places: list[ShardRow], resized: ResizedImageCache) -> RawDataset:
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
        warn_missing_classes(
            {part: {classes[label] for label in set(labels[parts == part].tolist())} for part in (VAL, TEST)}, classes
        )

        def of(indices: Indices) -> tuple[tuple[str, ...], list[ShardRow]]:
            return tuple(listed[index].path for index in indices), [places[index] for index in indices]

        (train_names, train_places), (test_names, test_places) = of(train), of(test)
        return RawDataset(
            classes=tuple(classes),
            train_images=resized.rows(train_places),
            train_labels=labels[train],
            test_images=resized.rows(test_places),
            test_labels=labels[test],
            val_indices=held_back if len(held_back) else None,
            train_names=train_names,
            test_names=test_names,
            resize_mode=self.resize_mode,
        )

    def _refuse_untrained(self, classes: Sequence[str], labels: np.ndarray) -> None:
        trained = set(labels.tolist())
        untrained = [name for number, name in enumerate(classes) if number not in trained]
        if untrained:
            raise UserError(
                f"{self.root} has no training images of {', '.join(untrained)}: add some, or remove the class from "
                "the other parts."
            )
