"""data/processed: a data set as training reads it, arrays on disk and dataset.json beside them.

    train/images.npy   train/labels.npy    the training part without what is held back
    val/...            test/...            what is held back to choose by; the official test part
    .../files.json                         the names of the files that the images were, if they were
    dataset.json                           what it is, where it comes from, its statistics and its content's hash

The arrays are memory-mapped to read and to write, so a set larger than memory takes the same code.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from cifar_pipeline.console import Refusal
from cifar_pipeline.data.equal import equal_pictures
from cifar_pipeline.data.official import Gathered, Images, Indices, Labels, Official
from cifar_pipeline.data.pieces import slices
from cifar_pipeline.data.sources.source import Source

PARTS = ("train", "val", "test")
# Of the pictures that stand in two parts, so many are named.
NAMED = 10
REMEDY = "`dvc repro -f preprocess` writes it again"


@dataclass(frozen=True)
class Dataset:
    """An open data set.

    `name` and `title` are of the data really there, `wanted` is the title of what was asked for; `source` says who
    made it. `shape` is [H, W, C], `fit` how pictures were brought to it; `sizes` has the number of images of each
    part; `mean` and `std` are of the train part, a number per channel, pixels scaled to [0, 1]. `hashes` has a
    SHA-256 for each array, `hash` one over all of them and the classes. `equal` has, for two parts such as "train,
    test", how many pictures of the second are in the first as well, and the first of them by their indices. `asked`
    and `used` are the values of `data` (asked.KEYS) in the configuration and in effect.
    """

    folder: Path
    name: str
    title: str
    wanted: str
    source: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    fit: str
    sizes: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    hashes: dict[str, str]
    hash: str
    equal: dict[str, dict[str, Any]]
    asked: dict[str, Any]
    used: dict[str, Any]

    @staticmethod
    def open(folder: Path) -> "Dataset":
        """Open what `write` wrote. Raises Refusal where a file is missing, cut off or of another data set."""
        path = folder / "dataset.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.pop("checksum") != _checksum(values):
                raise ValueError("wrong checksum")
            for key in ("classes", "shape", "mean", "std"):
                values[key] = tuple(values[key])
            dataset = Dataset(folder=folder, **values)
            if set(dataset.sizes) != set(PARTS):
                raise ValueError(f"parts {list(dataset.sizes)}")
        except FileNotFoundError:
            raise Refusal(f"{path} is missing; {REMEDY}.") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Refusal(f"{path} is damaged or not of this version; {REMEDY}.") from error
        for part in PARTS:
            dataset.part(part)
        return dataset

    @property
    def is_fallback(self) -> bool:
        """Whether this data stands in for what was asked for."""
        return bool(self.used["source"] != self.asked["source"])

    @property
    def caption(self) -> str:
        """What figures and tables call the data set, a fallback by its name."""
        return f"{self.title}, in place of {self.wanted}" if self.is_fallback else self.title

    def summary(self) -> dict[str, Any]:
        """What a report says about the data: name, title, source, whether it is a fallback, number of images."""
        facts = {"name": self.name, "title": self.title, "source": self.source}
        return {**facts, "fallback": self.is_fallback, "sizes": self.sizes, "hash": self.hash}

    def part(self, name: str) -> tuple[Images, Labels]:
        """The images `[N, H, W, C] uint8` and labels `[N] int64` of "train", "val" or "test", memory-mapped.

        Raises Refusal where a file is missing, cut off or not the array that dataset.json describes.
        """
        size = self.sizes[name]
        images = _load(self.folder / name / "images.npy", (size, *self.shape), np.uint8)
        return images, _load(self.folder / name / "labels.npy", (size,), np.int64)

    def files(self, part: str) -> list[str] | None:
        """The names of the files that a part's images were, in their order; None where they were none."""
        path = self.folder / part / "files.json"
        return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def leaks(self) -> Iterator[str]:
        """A sentence on each two parts that have pictures in common, the files named where there are any."""
        for parts, found in self.equal.items():
            first, second = parts.split(", ")
            names, others = self.files(first), self.files(second)
            pairs = [f"{others[two]} = {names[one]}" for one, two in found["pairs"]] if names and others else []
            listed = f": {', '.join(pairs)}{', ...' if found['count'] > len(pairs) else ''}" if pairs else ""
            yield f"{found['count']:,} pictures of the {second} part are in the {first} part as well{listed}."

    def verify(self) -> None:
        """Read every byte and compare it with the hashes. Raises Refusal naming the file that differs."""
        for part in PARTS:
            images, labels = self.part(part)
            for kind, found in (("images", _hash(images)), ("labels", _hash(labels))):
                if found != self.hashes[f"{part}/{kind}"]:
                    path = self.folder / part / f"{kind}.npy"
                    raise Refusal(f"{path} has other content than it was written with; {REMEDY}.")


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
) -> None:
    """Write `official` into the empty `folder`, its training images parted into those at `train` and at `val`.

    The same arguments write the same bytes, on every machine.
    """
    everything = np.arange(len(official.test_labels))
    of_train = official.train_images, official.train_labels, official.train_names
    parts = {
        "train": (*of_train, train),
        "val": (*of_train, val),
        "test": (official.test_images, official.test_labels, official.test_names, everything),
    }
    hashes = {}
    for part, (images, labels, names, indices) in parts.items():
        (folder / part).mkdir(parents=True)
        if names:
            (folder / part / "files.json").write_text(json.dumps([names[index] for index in indices], indent=0))
        for kind, array in (("images", images), ("labels", labels)):
            _write(folder / part / f"{kind}.npy", array, indices)
            hashes[f"{part}/{kind}"] = _hash(_map(folder / part / f"{kind}.npy"))
    mean, std = statistics(_map(folder / "train" / "images.npy"))
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
        "equal": _equal({part: _map(folder / part / "images.npy") for part in PARTS}),
        "asked": asked,
        "used": used,
    }
    values["checksum"] = _checksum(values)
    (folder / "dataset.json").write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def statistics(images: Images) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of `[N, H, W, C] uint8`, pixels scaled to [0, 1].

    Summed in integers, so exact and the same on every machine.
    """
    channels = images.shape[-1]
    values = np.arange(256)
    counts = np.zeros((channels, 256), np.int64)
    for piece in slices(len(images), prod(images.shape[1:])):
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


def _write(path: Path, array: np.ndarray | Gathered, indices: Indices) -> None:
    out = np.lib.format.open_memmap(path, "w+", array.dtype, (len(indices), *array.shape[1:]))
    _reserve(path)
    for piece in _pieces(out):
        out[piece] = array[indices[piece]]
    out.flush()


def _reserve(path: Path) -> None:
    """Take the disk space of a file now: what a full disk has no place for ends a process that writes to its map."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _map(path: Path) -> np.ndarray:
    # Copy on write: torch warns about arrays that cannot be written to, and the file must stay as it is.
    array: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
    return array


def _load(path: Path, shape: tuple[int, ...], kind: type[np.generic]) -> np.ndarray:
    try:
        array = _map(path)
    except FileNotFoundError:
        raise Refusal(f"{path} is missing; {REMEDY}.") from None
    except Exception as error:  # NumPy lets through whatever it meets in a header that is damaged.
        raise Refusal(f"{path} is cut off or no array; {REMEDY}.") from error
    if array.shape != shape or array.dtype != kind:
        raise Refusal(
            f"{path} holds {array.dtype} {list(array.shape)} where dataset.json says {np.dtype(kind)} {list(shape)}; "
            f"{REMEDY}."
        )
    return array


def _checksum(values: dict[str, Any]) -> str:
    """SHA-256 of what dataset.json says, whatever its layout."""
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _hash(array: np.ndarray) -> str:
    digest = sha256(f"{array.dtype.newbyteorder('<').str} {array.shape}".encode())
    for piece in _pieces(array):
        digest.update(np.ascontiguousarray(array[piece]).data)
    return digest.hexdigest()


def _pieces(array: np.ndarray) -> Iterator[slice]:
    return slices(len(array), array.itemsize * prod(array.shape[1:]))
