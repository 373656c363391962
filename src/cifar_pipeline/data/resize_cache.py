"""Image files brought to one size, and kept by their content: a file that hasn't changed is never resized twice.

    .cache/images/KEY/32x32x3-crop/NAME.npy     some hundred images [N, H, W, C] uint8
    .cache/images/KEY/32x32x3-crop/NAME.json    the SHA-256 of each one's file

KEY is a hash of what made the pixels: the code that reads and resizes, the versions of the libraries that decode, and
the limit on an image's size. Images under another key are removed, so one process at a time may use a cache.

Whatever the number of images, a shard for each core and no more of them are in memory.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifar_pipeline.config.compose import available_cores
from cifar_pipeline.config.source_files import loaded_sources
from cifar_pipeline.data.dataset import rows_per_chunk
from cifar_pipeline.data.images import UnreadableImage, decoders, load_image, read_bytes
from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.console import progress_bar
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
