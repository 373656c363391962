"""Read data/processed: a dataset as memory-mapped arrays, described by dataset.json.

    train/images.npy   train/labels.npy    the training images without the validation split
    val/...            test/...            the validation split; the official test images
    .../files.json                         the names of the image files, if the dataset was made from files
    dataset.json                           name, source, statistics and content hashes

The arrays are memory-mapped for reading and writing and processed in chunks, so a dataset may be larger than memory.
dataset.json also records the values of `data` that decide which images are trained on, both as requested and as used.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from cifar_pipeline.config.params import to_yaml_inline
from cifar_pipeline.data.sources.base import SPLITS, Images, Labels
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.safe_io import parse_json
from cifar_pipeline.utils.text import count_noun, flatten_dict

CHUNK_BYTES = 16 << 20
REBUILD_HINT = "`dvc repro -f preprocess` rebuilds it"


def row_slices(array: np.ndarray) -> Iterator[slice]:
    """Yield consecutive slices of an array's rows, each of about 16 MB and at least one row."""
    count, step = len(array), rows_per_chunk(array.itemsize * prod(array.shape[1:]))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def rows_per_chunk(row_bytes: int) -> int:
    """Return how many rows of `row_bytes` bytes fit into a chunk, at least one."""
    return max(1, CHUNK_BYTES // row_bytes)


@dataclass(frozen=True)
class Dataset:
    """An open dataset.

    Attributes:
        name, title, source: names and origin of the data in use, which may be the fallback.
        requested_title: the title of the source that the configuration requests.
        shape: [H, W, C].
        resize_mode: how image files were resized: "crop", "pad" or "stretch".
        sizes: the number of images in each split.
        mean, std: of the training split, one number per channel, pixels scaled to [0, 1].
        hashes: the SHA-256 of each array.
        file_lists: the SHA-256 of files.json of each split, if the dataset was made from image files.
        hash: one SHA-256 over all arrays and the classes.
        duplicates: for a pair of splits such as "train, test", the number of images of the second that are in the
            first as well, and the indices of the first few.
        contradictions: the number of images whose pixels have another label elsewhere, and of the first few
            `[split, index, split, index]` of both.
        requested, effective: the values of `data` in the configuration and in effect.
        skipped: the number of skipped files, which reports/skipped.csv lists.
    """

    folder: Path
    name: str
    title: str
    requested_title: str
    source: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    resize_mode: str
    sizes: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    hashes: dict[str, str]
    file_lists: dict[str, str]
    hash: str
    duplicates: dict[str, dict[str, Any]]
    contradictions: dict[str, Any]
    requested: dict[str, Any]
    effective: dict[str, Any]
    skipped: int = 0

    @staticmethod
    def open(folder: Path) -> "Dataset":
        """Open a dataset that `write_dataset` wrote. Raises UserError if a file is missing or corrupt."""
        path = folder / "dataset.json"
        try:
            values = parse_json(path.read_text(encoding="utf-8"))
            if values.pop("checksum") != checksum(values):
                raise ValueError("wrong checksum")
            for key in ("classes", "shape", "mean", "std"):
                values[key] = tuple(values[key])
            dataset = Dataset(folder=folder, **values)
            if set(dataset.sizes) != set(SPLITS):
                raise ValueError(f"splits {list(dataset.sizes)}")
        except FileNotFoundError:
            raise UserError(f"{path} is missing; {REBUILD_HINT}.") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} is corrupt or was written by another version; {REBUILD_HINT}.") from error
        for split in SPLITS:
            dataset.split(split)
        return dataset

    @property
    def is_fallback(self) -> bool:
        """Whether the fallback was used instead of the requested source."""
        return bool(self.effective["source"] != self.requested["source"])

    @property
    def caption(self) -> str:
        """The dataset's title for figures and tables; of a fallback with the title of the requested source."""
        return f"{self.title}, in place of {self.requested_title}" if self.is_fallback else self.title

    def describe_sizes(self) -> str:
        """Return the number of images of each split: `1,294 train, 144 val, 359 test`."""
        return ", ".join(f"{size:,} {split}" for split, size in self.sizes.items())

    def summary(self) -> dict[str, Any]:
        """Return name, title, source, is-fallback, split sizes and hash, for reports; also `skipped` unless it is 0."""
        names = {"name": self.name, "title": self.title, "source": self.source}
        skipped = {"skipped": self.skipped} if self.skipped else {}
        return {**names, "fallback": self.is_fallback, "sizes": self.sizes, **skipped, "hash": self.hash}

    def split(self, name: str) -> tuple[Images, Labels]:
        """Return images `[N, H, W, C] uint8` and labels `[N] int64` of "train", "val" or "test", memory-mapped.

        Raises UserError if a file is missing, truncated or differs from its description in dataset.json.
        """
        size = self.sizes[name]
        images = _load(self.folder / name / "images.npy", (size, *self.shape), np.uint8)
        return images, _load(self.folder / name / "labels.npy", (size,), np.int64)

    def files(self, split: str) -> list[str] | None:
        """Return the file name of each image of a split; None if the dataset was not made from image files.

        Raises UserError if files.json is missing or has changed.
        """
        if split not in self.file_lists:
            return None
        path = self.folder / split / "files.json"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise UserError(f"{path} is missing; {REBUILD_HINT}.") from None
        if sha256(content).hexdigest() != self.file_lists[split]:
            raise UserError(f"{path} is corrupt or belongs to another dataset; {REBUILD_HINT}.")
        names: list[str] = json.loads(content)
        return names

    def describe_duplicates(self) -> Iterator[str]:
        """Yield a sentence for each pair of splits with images in common, and one for equal images of several classes.

        With the names of the first files if the images are from files.
        """
        for splits, duplicates in self.duplicates.items():
            first, second = splits.split(", ")
            count, pairs = duplicates["count"], [(first, one, second, two) for one, two in duplicates["pairs"]]
            verb = "is" if count == 1 else "are"
            images = count_noun(count, "image")
            yield f"{images} of the {second} split {verb} in the {first} split as well{self._list_pairs(pairs, count)}."
        if count := self.contradictions["count"]:
            verb = "has" if count == 1 else "have"
            listed = self._list_pairs(self.contradictions["pairs"], count)
            yield (
                f"{count_noun(count, 'image')} {verb} the same pixels as an image of another class{listed}; one of the "
                "two labels must be wrong."
            )

    def _list_pairs(self, pairs: Sequence[Sequence[Any]], count: int) -> str:
        """List the files of pairs `(split, index, split, index)`, of which there are `count` in all."""
        names = {split: self.files(split) for pair in pairs for split in (pair[0], pair[2])}
        listed = [
            f"{second[two]} = {first[one]}"
            for earlier, one, later, two in pairs
            if (first := names[earlier]) and (second := names[later])
        ]
        return f": {', '.join(listed)}{', ...' if count > len(listed) else ''}" if listed else ""

    def verify(self) -> None:
        """Read every byte and compare it with the hashes. Raises UserError with the file that differs."""
        for split in SPLITS:
            images, labels = self.split(split)
            for name, actual in (("images", content_hash(images)), ("labels", content_hash(labels))):
                if actual != self.hashes[f"{split}/{name}"]:
                    path = self.folder / split / f"{name}.npy"
                    raise UserError(f"{path} has changed since it was written; {REBUILD_HINT}.")
            self.files(split)


def open_memmap(path: Path) -> np.ndarray:
    """Memory-map an array; writes to it do not reach the file."""
    # Copy-on-write, because torch warns about read-only arrays.
    array: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
    return array


def _load(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    try:
        array = open_memmap(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {REBUILD_HINT}.") from None
    except Exception as error:  # NumPy raises all kinds of errors for a corrupt header
        raise UserError(f"{path} is truncated or not an array; {REBUILD_HINT}.") from error
    if array.shape != shape or array.dtype != dtype:
        raise UserError(
            f"{path} contains {array.dtype} {list(array.shape)}, but dataset.json describes {np.dtype(dtype)} "
            f"{list(shape)}; {REBUILD_HINT}."
        )
    return array


def checksum(values: dict[str, Any]) -> str:
    """Return the SHA-256 of the values of dataset.json, independent of the file's formatting."""
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def content_hash(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's dtype, shape and values, the same on every machine."""
    digest = sha256(f"{array.dtype.newbyteorder('<').str} {array.shape}".encode())
    for rows in row_slices(array):
        digest.update(np.ascontiguousarray(array[rows]).data)
    return digest.hexdigest()


def dataset_config(data: DictConfig) -> dict[str, Any]:
    """Return the configuration's `data`, as `preprocess` and `train` are given it, as plain dicts and numbers."""
    values = OmegaConf.to_container(data, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def effective_dataset_config(requested: dict[str, Any], by_fallback: bool) -> dict[str, Any]:
    """Return the values in effect: with the fallback as the source if it was used."""
    return {**requested, "source": requested["fallback"] if by_fallback else requested["source"]}


def differing_values(requested: dict[str, Any], made: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield each key of `data` whose value differs from that with which a dataset was made, and both values."""
    requested, made = dict(requested), dict(made)
    for role in ("source", "fallback"):
        if _target(requested[role]) != _target(made.get(role)):  # then its other values need no comparison
            requested[role], made[role] = _option_name(requested[role]), _option_name(made.get(role))
    requested, made = flatten_dict(requested), flatten_dict(made)
    for key in dict.fromkeys([*requested, *made]):
        if requested.get(key) != made.get(key):
            yield key, requested.get(key), made.get(key)


def require_matching_config(dataset: Dataset, data: DictConfig) -> None:
    """Raise UserError if `dataset` was made with other values than those of the configuration's `data`."""
    difference = next(differing_values(dataset_config(data), dataset.requested), None)
    if difference is None:
        return
    key, value, before = difference
    if key == "source":
        remedy = f"`data: {value}`"
    elif key == "fallback" and value is not None:
        remedy = "the option of `data` that has this fallback"
    else:
        remedy = f"`overrides: {_nested_yaml('data.' + key, value)}`"
    raise UserError(
        f"{dataset.folder} was made with data.{key}={to_yaml_inline(before)}, but this configuration has "
        f"data.{key}={to_yaml_inline(value)}: set {remedy} in params.yaml and run `dvc repro preprocess`, or train "
        "with the former value."
    )


def _target(source: Any) -> Any:
    return source["_target_"] if source else None


def _option_name(source: Any) -> str | None:
    """Return the option of conf/data for a source: its class name in snake case."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", _target(source).split(".")[-1]).lower() if source else None


def _nested_yaml(key: str, value: Any) -> str:
    head, _, rest = key.partition(".")
    return f"{{{head}: {_nested_yaml(rest, value) if rest else to_yaml_inline(value)}}}"
