"""List the images of a folder with a subfolder for each class, optionally below train, val and test."""

import os
import re
from pathlib import Path
from typing import Any

from cifar_pipeline.data.image_paths import HIDDEN, NOT_A_FILE, SkippedFile, is_hidden, iter_files, skip_reason
from cifar_pipeline.data.sources.base import TEST, TRAIN, VAL
from cifar_pipeline.data.sources.image_files import NO_IMAGES_OUTSIDE, Group, ImageEntry, ImageFilesSource, Listing
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import list_names

SPLIT_DIR_NAMES = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VAL,
    "valid": VAL,
    "validation": VAL,
    "test": TEST,
    "testing": TEST,
}
OUTSIDE = "outside of the class folders"


class ImageFolder(ImageFilesSource):
    """Read a folder of class folders. The folder's name is the class; images may be at any depth below it.

    `group` is a regular expression: images in whose path it matches the same text are never in two splits. The path is
    relative to the root; what a pair of parentheses matches is the group, or else the whole match.
    """

    name = "image_folder"
    expected_layout = (
        "put the images of each class into a folder named after it, at least two of them, either in this folder or "
        "below `train` (and `val`, `test`)."
    )

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        try:
            self._pattern = None if self.group is None else re.compile(self.group)
        except re.error as error:
            raise UserError(f"data.group={self.group} is not a regular expression ({error}).") from None

    def list_images(self) -> Listing:
        """List the images of every class by name.

        Raises UserError if split folders and class folders are mixed, or a split has no class.
        """
        folders = _subfolders(self.root)
        splits = [folder for folder in folders if folder.name.lower() in SPLIT_DIR_NAMES]
        listing = Listing([], self._outside(self.root))
        if not splits:
            self._add_classes(listing, self.root, "")
            return listing
        names = list_names(folder.name for folder in splits)
        if len(splits) < len(folders):
            others = list_names(folder.name for folder in folders if folder not in splits)
            raise UserError(
                f"{self.root} contains split folders ({names}) next to others ({others}): put the classes below the "
                "splits, or rename the class that is named like a split."
            )
        if TRAIN not in {SPLIT_DIR_NAMES[folder.name.lower()] for folder in splits}:
            raise UserError(f"{self.root} has {names} but no `train`: {self.expected_layout}")
        for folder in splits:
            if not _subfolders(folder):
                raise UserError(f"{folder} contains no class folder: add one for each class, or remove {folder}.")
            listing.skipped.extend(self._outside(folder))
            self._add_classes(listing, folder, SPLIT_DIR_NAMES[folder.name.lower()])
        return listing

    def _add_classes(self, listing: Listing, parent: Path, split: str) -> None:
        for folder in _subfolders(parent):
            listing.groups[folder.name, split] = Group(folder.name, split, self._relative(folder))
            for path, reason in iter_files(folder):
                if reason:
                    listing.skipped.append(SkippedFile(self._relative(path), reason))
                else:
                    name = self._relative(path)
                    listing.images.append(ImageEntry(name, folder.name, split, self._group_of(name)))

    def _group_of(self, path: str) -> str:
        if self._pattern is None:
            return ""
        match = self._pattern.search(path)
        group = match[1 if match.re.groups else 0] if match else None
        if not group:
            raise UserError(
                f"data.group={self._pattern.pattern} does not match {path}: it must match the path of each image."
            )
        return group

    def _outside(self, folder: Path) -> list[SkippedFile]:
        """List the files in a folder of class folders that are not in any of these."""
        skipped = []
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if not entry.is_dir() or is_hidden(entry.name):
                    reason = skip_reason(entry) or OUTSIDE
                    is_kept = reason in (HIDDEN, OUTSIDE) or reason.endswith(NOT_A_FILE)
                    path = self._relative(Path(entry.path))
                    skipped.append(SkippedFile(path, reason if is_kept else NO_IMAGES_OUTSIDE))
        return skipped

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
