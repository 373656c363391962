"""Open labeled images to measure a model on: class folders, a CSV table, or the test split that `preprocess` wrote."""

import hashlib
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.data.image_paths import SkippedFile, is_hidden
from cifar_pipeline.data.images import load_image, to_array
from cifar_pipeline.data.sources.base import SPLITS, TEST, TRAIN, VAL, Images
from cifar_pipeline.data.sources.csv_table import CsvTable
from cifar_pipeline.data.sources.image_files import ImageFilesSource, Listing, merge_spellings, reject_similar_names
from cifar_pipeline.data.sources.image_folder import SPLIT_DIR_NAMES, ImageFolder
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.file_hashes import hash_file
from cifar_pipeline.utils.text import list_names

# Arguments of the sources that only a training needs.
UNUSED: dict[str, Any] = {
    "size": 1, "resize_mode": "crop", "test_fraction": 0.0, "split_seed": 0, "max_unreadable": 0, "max_megapixels": 1,
}  # fmt: skip
LAYOUT = "a folder with a folder of images for each class, or a CSV file with the columns path and label"


@dataclass(frozen=True)
class LabeledImages:
    """N images with the names of their classes, which need not be those of a model.

    Attributes:
        path: the folder or table that was opened.
        title: its name for figures and pages.
        split: the split that the images are from; empty if they are not split.
        root: the folder that the names of the files are relative to.
        names: N paths, or the numbers of the images if they are not from files.
        labels: N class names.
        pixels: `[N, H, W, C] uint8` if the images are stored as arrays.
        resize_mode: how the images of these arrays were resized.
        dataset_name, dataset_hash: of the data set of these arrays.
        left_out: the other splits.
        empty_classes: names of class folders without images.
        skipped: files that are not images, with the reasons.
    """

    path: Path
    title: str
    split: str
    root: Path
    names: tuple[str, ...]
    labels: tuple[str, ...]
    pixels: Images | None = None
    resize_mode: str = ""
    dataset_name: str = ""
    dataset_hash: str = ""
    left_out: tuple[str, ...] = ()
    empty_classes: tuple[str, ...] = ()
    skipped: tuple[SkippedFile, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def files(self) -> list[Path]:
        """The paths of the image files, in order."""
        return [self.root / name for name in self.names]

    def load(self, index: int, shape: tuple[int, int, int], resize_mode: str) -> np.ndarray:
        """Read an image as `[H, W, C] uint8` of `shape`, as a model sees it. Raises UnreadableImage."""
        if self.pixels is None:
            return load_image(self.root / self.names[index], shape, resize_mode)
        pixels: np.ndarray = self.pixels[index]
        if pixels.shape == shape:
            return pixels
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        return to_array(image, shape, resize_mode)

    def content_hash(self) -> str:
        """Return the SHA-256 of the names, the classes and the content of the images."""
        if self.dataset_hash:
            return self.dataset_hash
        digest = hashlib.sha256()
        for name, label, path in zip(self.names, self.labels, self.files, strict=True):
            digest.update(f"{name}\0{label}\0".encode(errors="surrogateescape"))
            digest.update(bytes.fromhex(_hash_if_readable(path)) or b"unreadable")
        return digest.hexdigest()

    def count_training_images(self, dataset: Dataset) -> int:
        """Return how many of the images are in the training split of a data set that was made from image files.

        They may have other names: files of the same size are compared by their content.
        """
        names = dataset.files(TRAIN)
        root = dataset.requested.get("source", {}).get("root")
        if names is None or root is None:
            return 0
        train = files_by_size(Path(root).resolve() / name for name in names)
        own = files_by_size(self.root.resolve() / name for name in self.names)
        count = 0
        for size in own.keys() & train.keys():
            same = own[size] & train[size]
            others = own[size] - same
            hashes = set(map(_hash_if_readable, train[size])) - {""} if others else set()
            count += len(same) + sum(_hash_if_readable(path) in hashes for path in others)
        return count


def files_by_size(paths: Iterable[Path]) -> dict[int, set[Path]]:
    """Group files by their number of bytes, without those that are gone."""
    files: dict[int, set[Path]] = {}
    for path in paths:
        with suppress(OSError):
            files.setdefault(path.stat().st_size, set()).add(path)
    return files


def _hash_if_readable(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits; empty if it cannot be read."""
    try:
        return hash_file(path)
    except OSError:
        return ""


@dataclass(frozen=True)
class ImagesAsSeen:
    """Images as a model sees them, read again from their files when they are indexed like an array.

    Attributes:
        source: where they are read from.
        positions: `[N] int`, their indices in `source`.
        shape: `(H, W, C)` of each.
        resize_mode: of the model.
    """

    source: LabeledImages
    positions: np.ndarray
    shape: tuple[int, int, int]
    resize_mode: str

    def __getitem__(self, index: Any) -> np.ndarray:
        """Return the image at an index, `[H, W, C] uint8`, or those at an array of M indices, `[M, H, W, C] uint8`."""
        if np.ndim(index) == 0:
            return self.source.load(int(self.positions[index]), self.shape, self.resize_mode)
        images = [self.source.load(int(position), self.shape, self.resize_mode) for position in self.positions[index]]
        return np.stack(images) if images else np.zeros((0, *self.shape), np.uint8)


def open_labeled_images(path: Path) -> LabeledImages:
    """List labeled images. Of several splits, only the test split is opened; without one, `val`, or else `train`.

    Args:
        path: a folder of class folders, directly or below test, val and train; a table as `data=csv_table` reads it;
            or a folder that `preprocess` wrote.

    Raises:
        UserError: there is no such folder or table, or it has no labeled images.
    """
    if not path.exists():
        raise UserError(f"There is no folder or table {path}: write {LAYOUT}.")
    if (path / "dataset.json").is_file():
        return _open_dataset(path)
    if path.is_file():
        return _open_table(path)
    if not path.is_dir():
        raise UserError(f"{path} is neither a folder nor a file: write {LAYOUT}.")
    return _open_folder(path)


def _open_dataset(path: Path) -> LabeledImages:
    dataset = Dataset.open(path)
    dataset.verify()
    images, labels = dataset.split(TEST)
    names = dataset.files(TEST) or [str(index) for index in range(len(images))]
    return LabeledImages(
        path,
        f"{dataset.caption} (test)",
        TEST,
        path,
        tuple(names),
        tuple(dataset.classes[label] for label in labels.tolist()),
        pixels=images,
        resize_mode=dataset.resize_mode,
        dataset_name=dataset.name,
        dataset_hash=dataset.hash,
        left_out=(TRAIN, VAL),
    )


def _open_table(path: Path) -> LabeledImages:
    if path.suffix.lower() not in (".csv", ".txt"):
        raise UserError(f"{path} is a file, but not a table: write {LAYOUT}.")
    table = CsvTable(csv_file=path.name, root=str(path.parent), **UNUSED)
    return _labeled(path, path.stem, table, table.list_images())


def _open_folder(path: Path) -> LabeledImages:
    try:
        folders = [entry for entry in sorted(path.iterdir()) if entry.is_dir() and not is_hidden(entry.name)]
        tables = sorted(entry for entry in path.glob("*.csv") if entry.is_file())
    except PermissionError:
        raise UserError(f"{path} cannot be read: run `chmod u+rx {path}`.") from None
    if not folders:
        hint = f"for a table, write --data {tables[0]}; " if tables else ""
        raise UserError(
            f"{path} has no folder of images for each class, so its images have no labels: {hint}to classify images "
            f"without labels, run `python src/predict.py {path}`."
        )
    splits = {SPLIT_DIR_NAMES.get(folder.name.lower(), "") for folder in folders}
    if splits & set(SPLITS) and "" not in splits:
        split = choose_split(splits)
        chosen = [folder for folder in folders if SPLIT_DIR_NAMES[folder.name.lower()] == split]
        if len(chosen) > 1:
            raise UserError(
                f"{list_names(chosen)} are both named like the {split} split: write --data with one of them."
            )
        source = ImageFolder(root=str(chosen[0]), **UNUSED)
        images = _labeled(
            path, f"{ImageFolder(root=str(path), **UNUSED).title} ({split})", source, source.list_images()
        )
        return replace(images, split=split, left_out=tuple(sorted(splits - {split})))
    source = ImageFolder(root=str(path), **UNUSED)
    return _labeled(path, source.title, source, source.list_images())


def _labeled(path: Path, title: str, source: ImageFilesSource, listing: Listing) -> LabeledImages:
    """Select the images of one split of a listing. Raises UserError if there are none."""
    listing = merge_spellings(listing)
    if not listing.images:
        raise UserError(f"{source.root} has no images: write {LAYOUT}.")
    splits = {image.split for image in listing.images}
    split = choose_split(splits)
    images = [image for image in listing.images if image.split == split]
    classes = {image.label for image in images}
    reject_similar_names(classes)
    return LabeledImages(
        path,
        f"{title} ({split})" if split else title,
        split,
        source.root,
        tuple(image.path for image in images),
        tuple(image.label for image in images),
        left_out=tuple(sorted(splits - {split})),
        empty_classes=tuple(label for label, name in listing.groups if name == split and label not in classes),
        skipped=tuple(listing.skipped),
    )


def choose_split(splits: Collection[str]) -> str:
    """Return the split to measure a model on: test, or else val, or else train; empty if there are no splits."""
    return next((split for split in (TEST, VAL, TRAIN) if split in splits), "")
