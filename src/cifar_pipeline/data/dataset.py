"""data/processed: a data set as training reads it, arrays on disk and dataset.json beside them.

    train/images.npy   train/labels.npy    the training part without what is held back
    val/...            test/...            what is held back to choose by; the official test part
    .../files.json                         the names of the files that the images were, if they were
    dataset.json                           what it is, where it comes from, its statistics and its content's hash

The arrays are memory-mapped to read and to write, so a set larger than memory takes the same code.

What was asked for and what is there: the values of `data` that decide which images are trained on.

An array that may be larger than memory, a piece at a time.
"""

import json
from collections.abc import Iterator
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
from cifar_pipeline.utils.text import flatten_dict

CHUNK_BYTES = 16 << 20


def row_slices(array: np.ndarray) -> Iterator[slice]:
    """Consecutive slices of an array's rows, each of some 16 MB and of at least one row."""
    count, step = len(array), rows_per_chunk(array.itemsize * prod(array.shape[1:]))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def rows_per_chunk(item_bytes: int) -> int:
    """How many items of so many bytes make a piece, at least one."""
    return max(1, CHUNK_BYTES // item_bytes)


REBUILD_HINT = "`dvc repro -f preprocess` writes it again"


@dataclass(frozen=True)
class Dataset:
    """An open data set.

    `name` and `title` are of the data really there, `wanted` is the title of what was asked for; `source` says who
    made it. `shape` is [H, W, C], `fit` how images were brought to it; `sizes` has the number of images of each
    part; `mean` and `std` are of the train part, a number per channel, pixels scaled to [0, 1]. `hashes` has a
    SHA-256 for each array, `hash` one over all of them and the classes. `equal` has, for two parts such as "train,
    test", how many images of the second are in the first as well, and the first of them by their indices. `asked`
    and `used` are the values of `data` (asked.KEYS) in the configuration and in effect. `skipped` is the number of
    files that were not taken; reports/skipped.csv names them.
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
    hash: str
    duplicates: dict[str, dict[str, Any]]
    requested: dict[str, Any]
    effective: dict[str, Any]
    skipped: int = 0

    @staticmethod
    def open(folder: Path) -> "Dataset":
        """Open what `write` wrote. Raises Refusal where a file is missing, cut off or of another data set."""
        path = folder / "dataset.json"
        try:
            values = parse_json(path.read_text(encoding="utf-8"))
            if values.pop("checksum") != checksum(values):
                raise ValueError("wrong checksum")
            for key in ("classes", "shape", "mean", "std"):
                values[key] = tuple(values[key])
            dataset = Dataset(folder=folder, **values)
            if set(dataset.sizes) != set(SPLITS):
                raise ValueError(f"parts {list(dataset.sizes)}")
        except FileNotFoundError:
            raise UserError(f"{path} is missing; {REBUILD_HINT}.") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} is damaged or not of this version; {REBUILD_HINT}.") from error
        for part in SPLITS:
            dataset.split(part)
        return dataset

    @property
    def is_fallback(self) -> bool:
        """Whether this data stands in for what was asked for."""
        return bool(self.effective["source"] != self.requested["source"])

    @property
    def caption(self) -> str:
        """What figures and tables call the data set, a fallback by its name."""
        return f"{self.title}, in place of {self.requested_title}" if self.is_fallback else self.title

    def summary(self) -> dict[str, Any]:
        """What a report says about the data: name, title, source, whether it is a fallback, number of images.

        And the number of files that were skipped, where there are any.
        """
        facts = {"name": self.name, "title": self.title, "source": self.source}
        skipped = {"skipped": self.skipped} if self.skipped else {}
        return {**facts, "fallback": self.is_fallback, "sizes": self.sizes, **skipped, "hash": self.hash}

    def split(self, name: str) -> tuple[Images, Labels]:
        """The images `[N, H, W, C] uint8` and labels `[N] int64` of "train", "val" or "test", memory-mapped.

        Raises Refusal where a file is missing, cut off or not the array that dataset.json describes.
        """
        size = self.sizes[name]
        images = _load(self.folder / name / "images.npy", (size, *self.shape), np.uint8)
        return images, _load(self.folder / name / "labels.npy", (size,), np.int64)

    def files(self, part: str) -> list[str] | None:
        """The names of the files that a part's images were, in their order; None where they were none.

        Raises Refusal where the list is not one of as many names.
        """
        path = self.folder / part / "files.json"
        if not path.is_file():
            return None
        try:
            names = parse_json(path.read_text(encoding="utf-8"))
            is_whole = isinstance(names, list) and len(names) == self.sizes[part] and all(map(_is_text, names))
        except ValueError:
            is_whole = False
        if not is_whole:
            raise UserError(f"{path} is damaged or of another data set; {REBUILD_HINT}.")
        return list(names)

    def describe_duplicates(self) -> Iterator[str]:
        """A sentence on each two parts that have images in common, the files named where there are any."""
        for parts, found in self.duplicates.items():
            first, second = parts.split(", ")
            names, others = self.files(first), self.files(second)
            pairs = [f"{others[two]} = {names[one]}" for one, two in found["pairs"]] if names and others else []
            listed = f": {', '.join(pairs)}{', ...' if found['count'] > len(pairs) else ''}" if pairs else ""
            yield f"{found['count']:,} images of the {second} part are in the {first} part as well{listed}."

    def verify(self) -> None:
        """Read every byte and compare it with the hashes. Raises Refusal naming the file that differs."""
        for part in SPLITS:
            images, labels = self.split(part)
            for kind, found in (("images", content_hash(images)), ("labels", content_hash(labels))):
                if found != self.hashes[f"{part}/{kind}"]:
                    path = self.folder / part / f"{kind}.npy"
                    raise UserError(f"{path} has other content than it was written with; {REBUILD_HINT}.")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def open_memmap(path: Path) -> np.ndarray:
    """An array in a file, read as far as it is asked for."""
    # Copy on write: torch warns about arrays that cannot be written to, and the file must stay as it is.
    array: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
    return array


def _load(path: Path, shape: tuple[int, ...], kind: type[np.generic]) -> np.ndarray:
    try:
        array = open_memmap(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {REBUILD_HINT}.") from None
    except Exception as error:  # NumPy lets through whatever it meets in a header that is damaged.
        raise UserError(f"{path} is cut off or no array; {REBUILD_HINT}.") from error
    if array.shape != shape or array.dtype != kind:
        raise UserError(
            f"{path} holds {array.dtype} {list(array.shape)} where dataset.json says {np.dtype(kind)} {list(shape)}; "
            f"{REBUILD_HINT}."
        )
    return array


def checksum(values: dict[str, Any]) -> str:
    """SHA-256 of what dataset.json says, whatever its layout."""
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def content_hash(array: np.ndarray) -> str:
    """SHA-256 of an array: its type, its shape and its values, the same on every machine."""
    digest = sha256(f"{array.dtype.newbyteorder('<').str} {array.shape}".encode())
    for piece in row_slices(array):
        digest.update(np.ascontiguousarray(array[piece]).data)
    return digest.hexdigest()


# Mirrors and timeouts change the route, not the images.
DATASET_KEYS = ("source", "fallback", "val_fraction", "split_seed")


def dataset_config(data: DictConfig) -> dict[str, Any]:
    """The values of the configuration's `data` that decide about the images, as plain dictionaries and numbers."""
    values = OmegaConf.to_container(data, resolve=True)
    assert isinstance(values, dict)
    return {key: values[key] for key in DATASET_KEYS}


def effective_dataset_config(asked: dict[str, Any], by_fallback: bool) -> dict[str, Any]:
    """The values that were used: the fallback has stepped into the source's place, or it was not needed."""
    return {**asked, "source": asked["fallback"] if by_fallback else asked["source"]}


def require_matching_config(dataset: Dataset, data: DictConfig) -> None:
    """Refuse to go on where `dataset` was made for other values than the configuration's `data` asks for."""
    wanted, made = dataset_config(data), dict(dataset.requested)
    for role in ("source", "fallback"):
        if _target(wanted[role]) != _target(made.get(role)):  # then its further values need no comparison
            wanted[role], made[role] = _option_name(wanted[role]), _option_name(made.get(role))
    wanted, made = flatten_dict(wanted), flatten_dict(made)
    differing = [key for key in dict.fromkeys([*wanted, *made]) if wanted.get(key) != made.get(key)]
    if not differing:
        return
    key = differing[0]
    value = wanted.get(key)
    if key == "source":
        remedy = f"`data: {value}`"
    elif key == "fallback" and value is not None:
        remedy = "the option of `data` that has this fallback"
    else:
        remedy = f"`overrides: {_nested_yaml('data.' + key, value)}`"
    raise UserError(
        f"{dataset.folder} was made for data.{key}={to_yaml_inline(made.get(key))}, but this configuration asks for "
        f"data.{key}={to_yaml_inline(value)}: write {remedy} in params.yaml and run `dvc repro preprocess`, or train with what "
        "it was made for."
    )


def _target(source: Any) -> Any:
    return source["_target_"] if source else None


def _option_name(source: Any) -> str | None:
    """An option of conf/data bears the name of the module that its source lives in."""
    return _target(source).split(".")[-2] if source else None


def _nested_yaml(key: str, value: Any) -> str:
    head, _, rest = key.partition(".")
    return f"{{{head}: {_nested_yaml(rest, value) if rest else to_yaml_inline(value)}}}"
