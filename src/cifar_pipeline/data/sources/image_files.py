"""Read your own images: list them by class and split, resize them once, and cache them by content.

The files stay in place; `preprocess` resizes them into a cache:

    .cache/images/KEY/32x32x3-crop/NAME.npy     a shard of up to 512 images [N, H, W, C] uint8
    .cache/images/KEY/32x32x3-crop/NAME.json    the SHA-256 of the file of each image

KEY is a hash of everything that determines the pixels besides the files: the code that decodes and resizes, the
versions of the libraries that decode, and the size limit. Images under another key are removed, so only one process at
a time may use the cache. An unchanged file is never resized twice, and at most one shard per core is in memory.
"""

import json
import logging
import shutil
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
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
from cifar_pipeline.data.sources.base import TEST, TRAIN, VAL, Indices, Labels, RawDataset
from cifar_pipeline.data.splits import grouped_split, require_separate_groups, stratified_split
from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.console import progress_bar
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.safe_io import parse_json
from cifar_pipeline.utils.text import MAX_LISTED, compose_characters, count_noun, list_names

log = logging.getLogger(__name__)

Shape = tuple[int, int, int]

CACHE = Path(".cache/images")
# What data/raw contains instead of the files.
MARKER_FILE = "source.txt"
MARKER_TEXT = "The images stay in the folder that `image_dir` in params.yaml names.\n"
CHANNELS = 3
MAX_SHARD_IMAGES = 512
NO_IMAGES_OUTSIDE = "outside of the class folders and not named like an image"
# Reasons that are only counted on the screen, because the file was not meant as an image.
UNLABELED = (HIDDEN, NO_IMAGES_OUTSIDE)


@dataclass(frozen=True)
class ImageEntry:
    """The path of an image relative to the root, its class, its split and its group ("" if not specified)."""

    path: str
    label: str
    split: str = ""
    group: str = ""


class Group(NamedTuple):
    """The images of one class in one split ("" if not specified), and a description of where they are."""

    label: str
    split: str
    location: str


@dataclass(frozen=True)
class Listing:
    """The listed images, the skipped files, and all groups by (label, split), including those without images."""

    images: list[ImageEntry]
    skipped: list[SkippedFile] = field(default_factory=list)
    groups: dict[tuple[str, str], Group] = field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the labels."""
        return sorted({label for label, _ in self.groups} | {image.label for image in self.images})


class ImageFilesSource(ABC):
    """Base class of sources that read image files from a folder; a subclass lists them.

    `root` is the folder; images are resized to `size` x `size` pixels by `resize_mode` ("crop", "pad" or "stretch").
    Without a given test split, `test_fraction` of each class is drawn by `split_seed`.
    With `group`, which a subclass interprets, images of one group are never in two splits.
    Up to `max_unreadable` unreadable files are skipped; an image may have up to `max_megapixels`.
    `skipped` lists the files that the last `read` skipped, with the reasons; `skipped_table` is where the caller writes
    them, for the messages.
    """

    name: str
    origin = "the user's own images"  # part of dataset.json

    def __init__(
        self,
        root: str,
        size: int,
        resize_mode: str,
        test_fraction: float,
        split_seed: int,
        max_unreadable: int,
        max_megapixels: float,
        group: str | None = None,
    ) -> None:
        self.root, self.shape, self.resize_mode = Path(root).expanduser(), (size, size, CHANNELS), resize_mode
        self.test_fraction, self.split_seed = test_fraction, split_seed
        self.max_unreadable, self.max_megapixels = max_unreadable, max_megapixels
        self.group = group
        self.skipped_table = "reports/skipped.csv"
        self.skipped: list[SkippedFile] = []

    @property
    def title(self) -> str:
        """The name of the folder, or of the folder that it links to."""
        # It may not be valid UTF-8.
        return self.root.resolve().name.encode(errors="backslashreplace").decode()

    @property
    @abstractmethod
    def expected_layout(self) -> str:
        """What the root must contain, as the end of a sentence."""

    @abstractmethod
    def list_images(self) -> Listing:
        """List all images, in an order that depends only on their names. Raises UserError."""

    def fetch(self, folder: Path, mirrors: list[str], timeout: float, cache: Path) -> str:
        """Check the images without reading them, and write a marker file into `folder`. Raises UserError."""
        listing = self._list_checked()
        reject_unreadable_by_dvc(self.skipped)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER_FILE).write_text(MARKER_TEXT, encoding="utf-8")
        return f"{self.root} ({len(listing.images):,} files of {len(listing.classes)} classes, left in place)"

    def is_complete(self, folder: Path) -> bool:
        """Return whether `folder` contains the marker file."""
        marker = folder / MARKER_FILE
        return marker.is_file() and marker.read_text(encoding="utf-8") == MARKER_TEXT

    def read(self, folder: Path) -> RawDataset:
        """Resize all images, or take them from the cache, and split them.

        Raises UserError if too many files are unreadable, or a split or a class has no images left.
        """
        listing = self._list_checked()
        set_max_megapixels(self.max_megapixels, "data.max_megapixels")
        cache = ResizedImageCache(CACHE, self.shape, self.resize_mode)
        results = list(
            zip(listing.images, cache.resize_all([self.root / image.path for image in listing.images]), strict=True)
        )
        unreadable = [SkippedFile(image.path, row) for image, row in results if isinstance(row, str)]
        readable = [(image, row) for image, row in results if isinstance(row, ShardRow)]
        self.skipped += self._with_root(unreadable)
        report_skipped(self.skipped, self.skipped_table)
        # Before the limit on unreadable files, because this message is more specific.
        require_usable_images(listing, (image for image, _ in readable), unreadable)
        self._check_unreadable(len(unreadable))
        return self._split([image for image, _ in readable], [row for _, row in readable], cache)

    def _list_checked(self) -> Listing:
        if not self.root.is_dir():
            raise UserError(
                f"There is no folder {self.root}: set `image_dir: FOLDER` in params.yaml to the folder of your images."
            )
        reject_linked_folders(self.root)
        listing = merge_spellings(self.list_images())
        locations = [group.location for group in listing.groups.values()]
        paths = ((image.path for image in listing.images), (file.path for file in listing.skipped))
        reject_undecodable(chain(locations, *paths), self.root)
        self.skipped = self._with_root(listing.skipped)
        classes = listing.classes
        if len(classes) < 2:
            only = f"only the class {classes[0]}" if classes else "no classes"
            raise UserError(f"{self.root} contains {only}: {self.expected_layout}")
        reject_similar_names(classes)
        require_usable_images(listing, listing.images, [])
        if self.group is not None:
            require_separate_groups(_groups_by_split(listing.images))
        return listing

    def _with_root(self, skipped: Sequence[SkippedFile]) -> list[SkippedFile]:
        return [SkippedFile(str(self.root / path), reason) for path, reason in skipped]

    def _check_unreadable(self, count: int) -> None:
        if count > self.max_unreadable:
            raise UserError(
                f"{count_noun(count, 'file')} cannot be read, more than data.max_unreadable={self.max_unreadable}: "
                f"fix or remove them, or set `overrides: {{data: {{max_unreadable: {count}}}}}` in params.yaml to skip "
                "them."
            )
        if count:
            skipped_files = count_noun(count, "unreadable file")
            log.warning(f"Skipped {skipped_files}, at most {self.max_unreadable:,} (data.max_unreadable).")

    def _split(self, images: list[ImageEntry], rows: list["ShardRow"], cache: "ResizedImageCache") -> RawDataset:
        classes = sorted({image.label for image in images})
        label_of = {name: label for label, name in enumerate(classes)}
        labels = np.array([label_of[image.label] for image in images], np.int64)
        splits = np.array([image.split for image in images])
        test = np.flatnonzero(splits == TEST)
        train = np.flatnonzero(splits != TEST)
        if not len(test):
            candidates = np.flatnonzero(splits != VAL)
            test = candidates[self._draw_test(labels[candidates], [images[index] for index in candidates], classes)]
            train = np.setdiff1d(train, test)
        val = np.flatnonzero(splits[train] == VAL)
        self._check_classes(classes, labels[train][splits[train] != VAL])
        warn_missing_classes(
            {split: {classes[label] for label in set(labels[splits == split].tolist())} for split in (VAL, TEST)},
            classes,
        )

        def select(indices: Indices) -> tuple[tuple[str, ...], ShardedImages]:
            return tuple(images[index].path for index in indices), cache.view([rows[index] for index in indices])

        (train_names, train_images), (test_names, test_images) = select(train), select(test)
        return RawDataset(
            classes=tuple(classes),
            train_images=train_images,
            train_labels=labels[train],
            test_images=test_images,
            test_labels=labels[test],
            val_indices=val if len(val) else None,
            train_names=train_names,
            test_names=test_names,
            train_groups=() if self.group is None else tuple(images[index].group for index in train),
            resize_mode=self.resize_mode,
        )

    def _draw_test(self, labels: Labels, images: Sequence[ImageEntry], classes: Sequence[str]) -> Indices:
        """Return the indices of the images that become the test split."""
        fraction, seed, option = self.test_fraction, self.split_seed, "data.test_fraction"
        if self.group is None:
            return stratified_split(labels, fraction, seed, classes, option)[1]
        return grouped_split(labels, [image.group for image in images], fraction, seed, option)[1]

    def _check_classes(self, classes: Sequence[str], train_labels: np.ndarray) -> None:
        present = set(train_labels.tolist())
        missing = [name for label, name in enumerate(classes) if label not in present]
        if missing:
            raise UserError(
                f"{self.root} has no training images of {list_names(missing)}: add some, or remove the class from the "
                "other splits."
            )


def _groups_by_split(images: Iterable[ImageEntry]) -> dict[str, list[str]]:
    """Return the groups of the images of each given split, in order."""
    groups: dict[str, list[str]] = {}
    for image in images:
        groups.setdefault(image.split or TRAIN, []).append(image.group)
    return groups


def require_usable_images(listing: Listing, readable: Iterable[ImageEntry], unreadable: Sequence[SkippedFile]) -> None:
    """Raise UserError, with the reasons, if a class, or a class of a given split, has no readable image."""
    present = {(image.label, image.split) for image in readable}
    empty = [group for key, group in listing.groups.items() if key not in present]
    if not empty:
        return
    group_of = {image.path: (image.label, image.split) for image in listing.images}
    descriptions = []
    for group in empty[:MAX_LISTED]:
        skipped = [file for file in unreadable if group_of.get(file.path) == (group.label, group.split)]
        skipped += [file for file in listing.skipped if file.path.startswith(f"{group.location}/")]
        files = "file" if len(skipped) == 1 else "files"
        reason = f"{len(skipped):,} {files} skipped: {SkipCounts(skipped)}" if skipped else "empty"
        descriptions.append(f"{group.location} [{reason}]")
    raise UserError(
        f"No images are left in {list_names(descriptions, total=len(empty))}: fix these files, add images, or remove "
        "the class."
    )


def report_skipped(skipped: Sequence[SkippedFile], table: str) -> None:
    """Log up to ten skipped files, and the counts of all by reason; `table` is the path of the full list."""
    listed = SkipCounts(file for file in skipped if file.reason not in UNLABELED)
    for path, reason in listed.named():
        log.warning(f"{path}: {reason}.")
    if listed:
        log.warning(f"Skipped {count_noun(len(listed), 'file')}, listed in {table}: {listed}.")
    if others := SkipCounts(file for file in skipped if file.reason in UNLABELED):
        log.info(f"Ignored {count_noun(len(others), 'file')}: {others}.")


def reject_unreadable_by_dvc(skipped: Sequence[SkippedFile]) -> None:
    """Raise UserError for pipes, sockets and devices among the images, because DVC would read them and hang."""
    for path, reason in skipped:
        if reason.endswith(NOT_A_FILE):
            raise UserError(f"{path}: {reason}. Remove it, because DVC would hang reading it.")


def reject_undecodable(paths: Iterable[str], root: Path) -> None:
    """Raise UserError for a name that is not UTF-8, because neither DVC nor a text file can represent it."""
    for path in paths:
        if not path.isascii() and path != (readable := path.encode(errors="backslashreplace").decode()):
            raise UserError(f"{root / readable}: the name is not UTF-8, which DVC cannot read; rename it.")


def merge_spellings(listing: Listing) -> Listing:
    """Give classes and groups whose names are the same text in Unicode one spelling.

    macOS decomposes `é` in file names into two characters. A class with several spellings gets the composed one (NFC);
    one with a single spelling keeps it. Groups are only compared, and get the composed one.
    """
    spellings: dict[str, set[str]] = {}
    for label in listing.classes:
        spellings.setdefault(compose_characters(label), set()).add(label)
    merged = {label: name for name, labels in spellings.items() for label in labels if len(labels) > 1}
    images = [
        replace(image, label=merged.get(image.label, image.label), group=compose_characters(image.group))
        for image in listing.images
    ]
    groups: dict[tuple[str, str], Group] = {}
    for group in listing.groups.values():
        label = merged.get(group.label, group.label)
        groups.setdefault((label, group.split), group._replace(label=label))
    return replace(listing, images=images, groups=groups)


def reject_similar_names(classes: Collection[str]) -> None:
    """Raise UserError for class names that look the same, and warn about those that differ only in case."""
    by_normalized: dict[str, str] = {}
    by_folded: dict[str, str] = {}
    for name in sorted(classes):
        normalized = " ".join(compose_characters(name).split())
        if (other := by_normalized.setdefault(normalized, name)) != name:
            raise UserError(f"The classes {other!a} and {name!a} look the same ({normalized}): give both one name.")
        if (other := by_folded.setdefault(normalized.casefold(), name)) != name:
            log.warning(f"The classes {other} and {name} differ only in case; they are two classes.")


def warn_missing_classes(splits: dict[str, set[str]], classes: Sequence[str]) -> None:
    """Warn if a given validation or test split has no images of a class, which is then not measured in it."""
    for split, present in splits.items():
        missing = [name for name in classes if name not in present]
        if missing and present and split != TRAIN:
            log.warning(f"The {split} split has no images of {list_names(missing)}, so they are not measured there.")


@dataclass(frozen=True)
class ShardRow:
    """The position of a cached image: the name of its shard and the row in it."""

    shard: str
    row: int


@dataclass(frozen=True)
class ShardedImages:
    """Images `[N, H, W, C] uint8` in shards, read when they are indexed like an array."""

    folder: Path
    rows: tuple[ShardRow, ...]
    image_shape: Shape

    dtype = np.dtype(np.uint8)
    ndim = 4

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self.rows), *self.image_shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read the images at `indices` `[M]`, in their order."""
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        by_shard: dict[str, list[tuple[int, int]]] = {}
        for position, index in enumerate(indices):
            by_shard.setdefault(self.rows[index].shard, []).append((position, self.rows[index].row))
        for shard, pairs in by_shard.items():
            positions, rows = map(list, zip(*pairs, strict=True))
            images[positions] = np.load(self.folder / f"{shard}.npy", mmap_mode="r")[rows]
        return images


class ResizedImageCache:
    """Cache resized images of one shape and resize mode in shards, by the SHA-256 of their files."""

    def __init__(self, cache: Path, shape: Shape, resize_mode: str) -> None:
        self.shape, self.resize_mode = shape, resize_mode
        self.folder = cache / cache_key() / f"{'x'.join(map(str, shape))}-{resize_mode}"
        _remove_other_keys(self.folder.parent)
        self.index = dict(self._load_index())

    def resize_all(self, files: Sequence[Path]) -> list[ShardRow | str]:
        """Resize the files that are not cached yet, on all cores, and return the row of each, or why it is unreadable.

        Shards of which no image is used any more are removed.
        """
        size = min(MAX_SHARD_IMAGES, rows_per_chunk(prod(self.shape)))
        batches = [files[start : start + size] for start in range(0, len(files), size)]
        results: list[ShardRow | str] = []
        with ThreadPoolExecutor(available_cores()) as pool, progress_bar("Reading images", len(files)) as advance:
            try:
                for batch_results in pool.map(self._resize_shard, batches):
                    results += batch_results
                    advance(len(batch_results))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        self._prune({row.shard for row in results if isinstance(row, ShardRow)})
        return results

    def view(self, rows: Sequence[ShardRow]) -> ShardedImages:
        """Return the images of these rows as a lazy array."""
        return ShardedImages(self.folder, tuple(rows), self.shape)

    def _resize_shard(self, files: Sequence[Path]) -> list[ShardRow | str]:
        """Return the rows of some files, and write those that are not cached yet as one shard."""
        results, new = [], dict[str, NDArray[np.uint8]]()
        for file in files:
            try:
                content = read_bytes(file)
                digest = sha256(content).hexdigest()
                if digest not in self.index and digest not in new:
                    new[digest] = load_image(BytesIO(content), self.shape, self.resize_mode)
                results.append((digest, ""))
            except UnreadableImage as error:
                results.append(("", str(error)))
        written = self._write(new) if new else {}
        return [reason or self.index.get(digest) or written[digest] for digest, reason in results]

    def _write(self, images: dict[str, NDArray[np.uint8]]) -> dict[str, ShardRow]:
        digests = list(images)
        name = sha256(" ".join(digests).encode()).hexdigest()[:16]
        array = np.stack(list(images.values()))
        with atomic_write(self.folder / f"{name}.npy") as tmp:
            np.save(tmp, array, allow_pickle=False)
        # Written last, so that there is no index without its images.
        with atomic_write(self.folder / f"{name}.json") as tmp:
            tmp.write_text(json.dumps({"sha256": sha256(array.data).hexdigest(), "files": digests}), encoding="utf-8")
        return {digest: ShardRow(name, row) for row, digest in enumerate(digests)}

    def _load_index(self) -> Iterator[tuple[str, ShardRow]]:
        for path in self.folder.glob("*.json"):
            try:
                index = parse_json(path.read_text(encoding="utf-8"))
                digests = index["files"]
                images = np.load(path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
                is_valid = (
                    images.shape == (len(digests), *self.shape)
                    and images.dtype == np.uint8
                    and sha256(np.ascontiguousarray(images).data).hexdigest() == index["sha256"]
                )
            except (OSError, ValueError, EOFError, TypeError, KeyError):
                is_valid = False
            if is_valid:
                yield from ((digest, ShardRow(path.stem, row)) for row, digest in enumerate(digests))

    def _prune(self, used: set[str]) -> None:
        for path in [*self.folder.glob("*.json"), *self.folder.glob("*.npy")]:
            if path.stem not in used and not path.name.startswith("."):
                path.unlink(missing_ok=True)


def cache_key() -> str:
    """Return 16 hex digits of a hash over the code and the libraries that determine the pixels of an image."""
    code = loaded_sources().used(__name__).hashes
    return sha256(json.dumps([code, decoders()], sort_keys=True).encode()).hexdigest()[:16]


def _remove_other_keys(current: Path) -> None:
    for path in current.parent.iterdir() if current.parent.is_dir() else ():
        if path.is_dir() and path != current:
            shutil.rmtree(path, ignore_errors=True)
