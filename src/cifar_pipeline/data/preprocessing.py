"""Write data/processed: split a raw dataset, and write the arrays and dataset.json.

The split is stratified and seeded: the same images for the same seed on every machine. Images that occur in two splits
are recorded, because memorized images do not measure anything, and so are equal images with different labels.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from hashlib import blake2b, sha256
from itertools import chain, combinations
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from cifar_pipeline.config.compose import available_cores
from cifar_pipeline.config.validation import instantiate_option
from cifar_pipeline.data.dataset import (
    checksum,
    content_hash,
    dataset_config,
    effective_dataset_config,
    open_memmap,
    row_slices,
)
from cifar_pipeline.data.image_paths import SkippedFile
from cifar_pipeline.data.sources.base import (
    TEST,
    TRAIN,
    VAL,
    Images,
    Indices,
    Labels,
    LazyImages,
    RawDataset,
    Source,
    available_source,
)
from cifar_pipeline.data.sources.image_files import UNLABELED
from cifar_pipeline.data.splits import train_val_split
from cifar_pipeline.utils.console import status
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import escape_control_json, list_names

# 16 bytes per image: no collision among a billion images.
DIGEST_BYTES = 16
MAX_LISTED_DUPLICATES = 10
SUMMED_BLOCK_BYTES = 1 << 17
MAX_SUMMED_LINES = (2**32 - 1) // 255**2


def process(
    folder: Path,
    raw_dir: Path,
    data: DictConfig,
    skipped_table: Path,
    write_skipped: Callable[[Sequence[SkippedFile], Path], None],
) -> None:
    """Read the raw files that `data` asks for, split them, and write them as a dataset into the empty `folder`.

    The skipped image files are written to `skipped_table` by `write_skipped`, also if reading fails.
    Only one process at a time may do this with image files, because they share `image_files.CACHE`.
    """
    requested_source, fallback = sources(data)
    source = available_source(raw_dir, requested_source, fallback)
    status(f"Reading {source.title}")
    try:
        raw = read(source, raw_dir, skipped_table)
    finally:
        skipped = getattr(source, "skipped", ())
        write_skipped(skipped, skipped_table)
    train, val = train_val_split(raw, data.val_fraction, data.split_seed, data.folds, data.fold)
    require_usable(raw, train, source.title)
    status("Writing the arrays")
    requested = dataset_config(data)
    write_dataset(
        folder,
        raw,
        train,
        val,
        source=source,
        requested_title=requested_source.title,
        requested=requested,
        effective=effective_dataset_config(requested, by_fallback=source is fallback),
        skipped=sum(reason not in UNLABELED for _, reason in skipped),
    )


def sources(data: DictConfig) -> tuple[Source, Source | None]:
    """Build the source that `data` asks for, and its fallback."""
    fallback = None if data.fallback is None else instantiate_option(data.fallback, "data.fallback")
    return instantiate_option(data.source, "data.source"), fallback


def read(source: Source, raw_dir: Path, skipped_table: Path) -> RawDataset:
    """Read the files of a source in `raw_dir`; its messages name `skipped_table` as the list of the skipped files."""
    if hasattr(source, "skipped_table"):
        source.skipped_table = str(skipped_table)
    return source.read(raw_dir / source.name)


def write_dataset(
    folder: Path,
    raw: RawDataset,
    train: Indices,
    val: Indices,
    *,
    source: Source,
    requested_title: str,
    requested: dict[str, Any],
    effective: dict[str, Any],
    skipped: int = 0,
) -> None:
    """Write `raw` into the empty `folder`, its training images split into those at `train` and at `val`.

    `requested` and `effective` are the values of `data`, `skipped` the number of skipped files.
    The same arguments write the same bytes on every machine.
    """
    raw_train = raw.train_images, raw.train_labels, raw.train_names
    raw_test = raw.test_images, raw.test_labels, raw.test_names
    splits = {TRAIN: (*raw_train, train), VAL: (*raw_train, val), TEST: (*raw_test, np.arange(len(raw.test_labels)))}
    arrays: dict[str, np.ndarray] = {}
    file_lists: dict[str, str] = {}
    # Hashing and NumPy's sums release the interpreter's lock, so threads use all cores.
    with ThreadPoolExecutor(available_cores()) as pool:
        hashing: dict[str, Future[str]] = {}
        for split, (images, labels, names, indices) in splits.items():
            (folder / split).mkdir(parents=True)
            if names:
                content = json.dumps([names[index] for index in indices], indent=0).encode()
                (folder / split / "files.json").write_bytes(content)
                file_lists[split] = sha256(content).hexdigest()
            for name, array in (("images", images), ("labels", labels)):
                arrays[f"{split}/{name}"] = _write(folder / split / f"{name}.npy", array, indices)
                hashing[f"{split}/{name}"] = pool.submit(content_hash, arrays[f"{split}/{name}"])
        mean, std = channel_mean_std(arrays[f"{TRAIN}/images"], pool)
        digests = {split: hash_pixels(arrays[f"{split}/images"], pool) for split in splits}
        hashes = {name: hashed.result() for name, hashed in hashing.items()}
    values = {
        "name": source.name,
        "title": source.title,
        "requested_title": requested_title,
        "source": source.origin,
        "classes": list(raw.classes),
        "shape": list(raw.train_images.shape[1:]),
        "resize_mode": raw.resize_mode,
        "sizes": {split: len(indices) for split, (*_, indices) in splits.items()},
        "mean": mean,
        "std": std,
        "hashes": hashes,
        "file_lists": file_lists,
        "hash": sha256(json.dumps([raw.classes, hashes], sort_keys=True).encode()).hexdigest(),
        "duplicates": find_duplicates(digests),
        "contradictions": find_contradictions(digests, {split: arrays[f"{split}/labels"] for split in splits}),
        "skipped": skipped,
        "requested": requested,
        "effective": effective,
    }
    values["checksum"] = checksum(values)
    (folder / "dataset.json").write_text(
        escape_control_json(json.dumps(values, indent=2, ensure_ascii=False)) + "\n", encoding="utf-8"
    )


def _write(path: Path, array: np.ndarray | LazyImages, indices: Indices) -> np.ndarray:
    """Write the rows at `indices`, and open the written array as a memory map."""
    out = np.lib.format.open_memmap(path, "w+", array.dtype, (len(indices), *array.shape[1:]))
    _preallocate(path)
    for rows in row_slices(out):
        out[rows] = array[indices[rows]]
    out.flush()
    return open_memmap(path)


def _preallocate(path: Path) -> None:
    """Reserve a file's disk space, because writing to a memory map on a full disk kills the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def channel_mean_std(images: Images, pool: Executor) -> tuple[list[float], list[float]]:
    """Compute mean and standard deviation of each channel of `[N, H, W, C] uint8`, pixels scaled to [0, 1].

    Summed in integers, so exact and the same on every machine.
    """
    sums = list(pool.map(lambda rows: _channel_sums(images[rows]), row_slices(images)))
    number = prod(images.shape[:-1])
    mean, std = [], []
    for channel in range(images.shape[-1]):
        # Python integers, because the product below exceeds 64 bits for CIFAR-10.
        total, squares = (sum(int(part[power][channel]) for part in sums) for power in (0, 1))
        mean.append(total / number / 255)
        std.append(sqrt((squares * number - total**2) / number**2) / 255)
    return mean, std


def _channel_sums(images: Images) -> NDArray[np.uint64]:
    """Sum each channel of `[N, H, W, C] uint8` and its squares, as `[2, C]`."""
    width, channels = images.shape[-2:]
    lines = images.reshape(-1, width * channels)
    # Few enough that the sums of squares fit into 32 bits, and that a block stays in the processor's cache.
    step = min(MAX_SUMMED_LINES, max(1, SUMMED_BLOCK_BYTES // lines.shape[1]))
    sums = np.zeros((2, lines.shape[1]), np.uint64)
    for start in range(0, len(lines), step):
        values = lines[start : start + step].astype(np.uint32)
        sums[0] += values.sum(axis=0, dtype=np.uint32)
        np.square(values, out=values)
        sums[1] += values.sum(axis=0, dtype=np.uint32)
    of_channels: NDArray[np.uint64] = sums.reshape(2, width, channels).sum(axis=1)
    return of_channels


def find_duplicates(digests: Mapping[str, list[bytes]]) -> dict[str, dict[str, Any]]:
    """Count the images of each pair of splits that are in both, and list the indices of the first few.

    `digests` has a hash of the pixels of each image, by split.
    """
    entries: dict[str, dict[str, Any]] = {}
    for earlier, later in combinations(digests, 2):
        first = {digest: index for index, digest in reversed(list(enumerate(digests[earlier])))}
        pairs = [[first[digest], index] for index, digest in enumerate(digests[later]) if digest in first]
        if pairs:
            entries[f"{earlier}, {later}"] = {"count": len(pairs), "pairs": pairs[:MAX_LISTED_DUPLICATES]}
    return entries


def find_contradictions(digests: Mapping[str, list[bytes]], labels: Mapping[str, Labels]) -> dict[str, Any]:
    """Count the images whose pixels have another label elsewhere, and list the split and index of the first few.

    `digests` has a hash of the pixels of each image, by split, and `labels` their labels, `[N] int64`.
    """
    first: dict[bytes, tuple[str, int, int]] = {}
    pairs = []
    for split, split_digests in digests.items():
        for index, (digest, label) in enumerate(zip(split_digests, labels[split].tolist(), strict=True)):
            other, position, other_label = first.setdefault(digest, (split, index, label))
            if other_label != label:
                pairs.append([other, position, split, index])
    return {"count": len(pairs), "pairs": pairs[:MAX_LISTED_DUPLICATES]}


def hash_pixels(images: Images, pool: Executor) -> list[bytes]:
    """Hash the pixels of each image of `[N, H, W, C] uint8`."""
    return list(chain.from_iterable(pool.map(partial(_digests, images), row_slices(images))))


def _digests(images: Images, rows: slice) -> list[bytes]:
    return [blake2b(image, digest_size=DIGEST_BYTES).digest() for image in images[rows]]


def require_usable(raw: RawDataset, train: Indices, title: str) -> None:
    """Raise UserError if a network cannot be trained or tested on the data; `train` are the training indices.

    That is with fewer than two classes, two classes of the same name, a class without training images, or no test
    images.
    """
    classes = raw.classes
    duplicates = sorted({name for name in classes if classes.count(name) > 1})
    if duplicates:
        raise UserError(
            f"{title} has two classes named {duplicates[0]}: the source must give each class a unique name."
        )
    if len(classes) < 2:
        raise UserError(f"{title} has {len(classes)} class: at least two are needed.")
    counts = np.bincount(raw.train_labels[train], minlength=len(classes))
    missing = [classes[label] for label in np.flatnonzero(counts == 0)]
    if missing:
        raise UserError(f"{title} has no training images of {list_names(missing)}: each class needs some.")
    if not len(raw.test_labels):
        raise UserError(f"{title} has no test images: `evaluate` needs some.")
