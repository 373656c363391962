"""data/processed written: the parts of a published data set as arrays, and dataset.json, which says what they are.

Images that stand in two parts of a data set: what a network has learnt by heart measures nothing.

Which images are held back: drawn at random, evenly from every class, the same ones for the same seed.
"""

import json
import os
from collections.abc import Mapping, Sequence
from hashlib import blake2b, sha256
from itertools import combinations
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifar_pipeline.data.dataset import checksum, content_hash, open_memmap, row_slices
from cifar_pipeline.data.sources.base import TEST, TRAIN, VAL, Images, Indices, Labels, LazyImages, RawDataset, Source
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import escape_control_json

# 16 bytes for each image: of a thousand million, no two are taken for equal by chance.
DIGEST_BYTES = 16


def find_duplicates(parts: Mapping[str, Images]) -> list[tuple[str, int, str, int]]:
    """For each image of a part that is one of an earlier part too: (earlier part, index, part, index).

    Compared is the hash of the pixels, `[H, W, C] uint8`.
    """
    digests = {part: list(_digests(images)) for part, images in parts.items()}
    found = []
    for earlier, later in combinations(parts, 2):
        first = {digest: index for index, digest in reversed(list(enumerate(digests[earlier])))}
        found += [
            (earlier, first[digest], later, index) for index, digest in enumerate(digests[later]) if digest in first
        ]
    return found


def _digests(images: Images) -> list[bytes]:
    found = []
    for piece in row_slices(images):
        found += [blake2b(image.tobytes(), digest_size=DIGEST_BYTES).digest() for image in images[piece]]
    return found


# Of the images that stand in two parts, so many are named.
MAX_LISTED_DUPLICATES = 10


def write_dataset(
    folder: Path,
    official: RawDataset,
    train: Indices,
    val: Indices,
    *,
    source: Source,
    wanted: str,
    asked: dict[str, Any],
    used: dict[str, Any],
    skipped: int = 0,
) -> None:
    """Write `official` into the empty `folder`, its training images parted into those at `train` and at `val`.

    `skipped` is the number of files that were not taken. The same arguments write the same bytes, on every machine.
    """
    of_train = official.train_images, official.train_labels, official.train_names
    of_test = official.test_images, official.test_labels, official.test_names
    everything = np.arange(len(official.test_labels))
    parts = {TRAIN: (*of_train, train), VAL: (*of_train, val), TEST: (*of_test, everything)}
    hashes: dict[str, str] = {}
    for part, (images, labels, names, indices) in parts.items():
        (folder / part).mkdir(parents=True)
        if names:
            (folder / part / "files.json").write_text(json.dumps([names[index] for index in indices], indent=0))
        hashes[f"{part}/images"] = _write(folder / part / "images.npy", images, indices)
        hashes[f"{part}/labels"] = _write(folder / part / "labels.npy", labels, indices)
    written = {part: open_memmap(folder / part / "images.npy") for part in parts}
    mean, std = channel_mean_std(written[TRAIN])
    values = {
        "name": source.name,
        "title": source.title,
        "requested_title": wanted,
        "source": source.origin,
        "classes": list(official.classes),
        "shape": list(official.train_images.shape[1:]),
        "resize_mode": official.resize_mode,
        "sizes": {part: len(indices) for part, (*_, indices) in parts.items()},
        "mean": mean,
        "std": std,
        "hashes": hashes,
        "hash": sha256(json.dumps([official.classes, hashes], sort_keys=True).encode()).hexdigest(),
        "duplicates": _duplicates(written),
        "skipped": skipped,
        "requested": asked,
        "effective": used,
    }
    values["checksum"] = checksum(values)
    (folder / "dataset.json").write_text(
        escape_control_json(json.dumps(values, indent=2, ensure_ascii=False)) + "\n", encoding="utf-8"
    )


def channel_mean_std(images: Images) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of `[N, H, W, C] uint8`, pixels scaled to [0, 1].

    Summed in integers, so exact and the same on every machine.
    """
    channels = images.shape[-1]
    values = np.arange(256)
    counts = np.zeros((channels, 256), np.int64)
    for piece in row_slices(images):
        pixels = images[piece].reshape(-1, channels)
        for channel in range(channels):
            counts[channel] += np.bincount(pixels[:, channel], minlength=256)
    mean, std = [], []
    for histogram in counts:
        # Python's integers: the product below leaves 64 bits with CIFAR-10's size.
        number, total, squares = (int(histogram @ values**power) for power in (0, 1, 2))
        mean.append(total / number / 255)
        std.append(sqrt((squares * number - total**2) / number**2) / 255)
    return mean, std


def _duplicates(parts: dict[str, Images]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for first, one, second, two in find_duplicates(parts):
        entry = found.setdefault(f"{first}, {second}", {"count": 0, "pairs": []})
        entry["count"] += 1
        if len(entry["pairs"]) < MAX_LISTED_DUPLICATES:
            entry["pairs"].append([one, two])
    return found


def _write(path: Path, array: np.ndarray | LazyImages, indices: Indices) -> str:
    """Write the rows at `indices`; returns the hash of what was written."""
    out = np.lib.format.open_memmap(path, "w+", array.dtype, (len(indices), *array.shape[1:]))
    _preallocate(path)
    for piece in row_slices(out):
        out[piece] = array[indices[piece]]
    out.flush()
    return content_hash(out)


def _preallocate(path: Path) -> None:
    """Take the disk space of a file now: what a full disk has no place for ends a process that writes to its map."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


MAX_SHOWN = 10


def train_val_split(official: RawDataset, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """The training images to learn from and those to choose by, as two ascending arrays of indices.

    The source's own choice where it has one, else `stratified_split` of `data.val_fraction`.
    """
    labels, held_back = official.train_labels, official.val_indices
    if held_back is None:
        return stratified_split(labels, fraction, seed, official.classes, "data.val_fraction")
    return np.setdiff1d(np.arange(len(labels)), held_back), held_back


def require_usable(official: RawDataset, train: Indices, title: str) -> None:
    """Refuse data that no network can learn from or be measured by; `train` are the images to learn from.

    Raises Refusal where there are fewer than two classes, two of one name, a class without a training image, or no
    test images.
    """
    classes = official.classes
    twice = sorted({name for name in classes if classes.count(name) > 1})
    if twice:
        raise UserError(f"{title} has two classes called {twice[0]}: a source must give each class a name of its own.")
    if len(classes) < 2:
        raise UserError(f"{title} has {len(classes)} class: at least two are needed.")
    counts = np.bincount(official.train_labels[train], minlength=len(classes))
    untrained = [classes[number] for number in np.flatnonzero(counts == 0)]
    if untrained:
        more = f" and {len(untrained) - MAX_SHOWN:,} more" if len(untrained) > MAX_SHOWN else ""
        raise UserError(
            f"{title} has no training images of {', '.join(untrained[:MAX_SHOWN])}{more}: each class needs some."
        )
    if not len(official.test_labels):
        raise UserError(f"{title} has no test images: `evaluate` needs some to measure by.")


def stratified_split(
    labels: Labels, fraction: float, seed: int, classes: Sequence[str] = (), option: str = "the fraction"
) -> tuple[Indices, Indices]:
    """Split `labels` `[N] int64` into what stays and what is held back, as two ascending arrays of indices.

    `fraction` of each class is held back, to the nearest image, so that their sum is `fraction` of all, and of each
    class at least one image and not all; 0 holds nothing back. `classes` are the names, `option` what sets the
    fraction, for the sentences. Raises Refusal for a fraction that is not in [0, 1), and for a class of one image.
    """
    if not 0 <= fraction < 1:
        raise UserError(
            f"A fraction of {fraction:g} cannot be held back: write a number from 0 up to, not including, 1."
        )
    held = np.zeros(len(labels), bool)
    if fraction > 0:
        present, counts = np.unique(labels, return_counts=True)
        single = [str(classes[label] if classes else label) for label in present[counts < 2]]
        if single:
            raise UserError(
                f"Of class {', '.join(single)} there is a single image left, which can't be both learnt and held back: "
                f"add some, leave the class out, or set {option} to 0."
            )
        # RandomState's stream is frozen (NEP 19): the same images are held back whatever the version of NumPy.
        random = np.random.RandomState(seed)
        for label, share in zip(present, _per_class_counts(counts, fraction), strict=True):
            held[random.permutation(np.flatnonzero(labels == label))[:share]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _per_class_counts(counts: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    """How many images of each class: rounded by largest remainder, so that the sum is right as well; never 0 or all."""
    exact = counts * fraction
    shares: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    left = round(float(exact.sum())) - int(shares.sum())
    shares[np.argsort(-(exact - shares), kind="stable")[:left]] += 1
    return np.clip(shares, 1, counts - 1)
