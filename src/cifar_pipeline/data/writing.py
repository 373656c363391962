"""data/processed written: the parts of a published data set as arrays, and dataset.json, which says what they are."""

import json
import os
from hashlib import sha256
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from cifar_pipeline.data.dataset import checksum, content_hash, mapped
from cifar_pipeline.data.equal import equal_pictures
from cifar_pipeline.data.official import TEST, TRAIN, VAL, Gathered, Images, Indices, Official
from cifar_pipeline.data.pieces import pieces
from cifar_pipeline.data.sources.source import Source
from cifar_pipeline.visible import visible_json

# Of the pictures that stand in two parts, so many are named.
NAMED = 10


def write(
    folder: Path,
    official: Official,
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
    written = {part: mapped(folder / part / "images.npy") for part in parts}
    mean, std = statistics(written[TRAIN])
    values = {
        "name": source.name,
        "title": source.title,
        "wanted": wanted,
        "source": source.origin,
        "classes": list(official.classes),
        "shape": list(official.train_images.shape[1:]),
        "fit": official.fit,
        "sizes": {part: len(indices) for part, (*_, indices) in parts.items()},
        "mean": mean,
        "std": std,
        "hashes": hashes,
        "hash": sha256(json.dumps([official.classes, hashes], sort_keys=True).encode()).hexdigest(),
        "equal": _equal(written),
        "skipped": skipped,
        "asked": asked,
        "used": used,
    }
    values["checksum"] = checksum(values)
    (folder / "dataset.json").write_text(
        visible_json(json.dumps(values, indent=2, ensure_ascii=False)) + "\n", encoding="utf-8"
    )


def statistics(images: Images) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of `[N, H, W, C] uint8`, pixels scaled to [0, 1].

    Summed in integers, so exact and the same on every machine.
    """
    channels = images.shape[-1]
    values = np.arange(256)
    counts = np.zeros((channels, 256), np.int64)
    for piece in pieces(images):
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


def _equal(parts: dict[str, Images]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for first, one, second, two in equal_pictures(parts):
        entry = found.setdefault(f"{first}, {second}", {"count": 0, "pairs": []})
        entry["count"] += 1
        if len(entry["pairs"]) < NAMED:
            entry["pairs"].append([one, two])
    return found


def _write(path: Path, array: np.ndarray | Gathered, indices: Indices) -> str:
    """Write the rows at `indices`; returns the hash of what was written."""
    out = np.lib.format.open_memmap(path, "w+", array.dtype, (len(indices), *array.shape[1:]))
    _reserve(path)
    for piece in pieces(out):
        out[piece] = array[indices[piece]]
    out.flush()
    return content_hash(out)


def _reserve(path: Path) -> None:
    """Take the disk space of a file now: what a full disk has no place for ends a process that writes to its map."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
