"""A folder with a folder of images for each class, whole or parted into train, val and test."""

import os
from pathlib import Path

from cifar_pipeline.data.image_paths import HIDDEN, NOT_A_FILE, SkippedFile, is_hidden, iter_files, skip_reason
from cifar_pipeline.data.sources.base import TEST, TRAIN, VAL
from cifar_pipeline.data.sources.image_files import NO_IMAGES_OUTSIDE, Group, ImageEntry, ImageFilesSource, Listing
from cifar_pipeline.utils.errors import UserError

# What the folders of parts are called.
SPLIT_DIR_NAMES = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VAL,
    "valid": VAL,
    "validation": VAL,
    "test": TEST,
    "testing": TEST,
}
OUTSIDE_HINT = "it lies in no class's folder"


class ImageFolder(ImageFilesSource):
    """The source of such a folder. A class is what its folder is called; in it images may lie at any depth."""

    name = "image_folder"
    wanted = (
        "put the images of each class into a folder of its name, at least two of them, either there or below `train` "
        "(and `val`, `test`)."
    )

    def listed(self) -> Listing:
        """The images of every class, by name.

        Raises Refusal where folders of parts stand beside those of classes, or a part has no class.
        """
        folders = _folders(self.root)
        parts = [folder for folder in folders if folder.name.lower() in SPLIT_DIR_NAMES]
        listing = Listing([], self._outside(self.root))
        if not parts:
            self._add(listing, self.root, "")
            return listing
        if len(parts) < len(folders):
            others = ", ".join(folder.name for folder in folders if folder not in parts)
            raise UserError(
                f"{self.root} holds folders of parts ({', '.join(folder.name for folder in parts)}) beside others "
                f"({others}): put the classes below the parts, or call a class otherwise."
            )
        if TRAIN not in {SPLIT_DIR_NAMES[folder.name.lower()] for folder in parts}:
            raise UserError(
                f"{self.root} has {', '.join(folder.name for folder in parts)} and no `train`: {self.wanted}"
            )
        for folder in parts:
            if not _folders(folder):
                raise UserError(
                    f"{folder} holds no folder of a class: put one for each class there, or remove {folder}."
                )
            listing.skipped.extend(self._outside(folder))
            self._add(listing, folder, SPLIT_DIR_NAMES[folder.name.lower()])
        return listing

    def _add(self, listing: Listing, folder: Path, part: str) -> None:
        for place in _folders(folder):
            listing.groups[place.name, part] = Group(place.name, part, self._below(place))
            for path, reason in iter_files(place):
                if reason:
                    listing.skipped.append(SkippedFile(self._below(path), reason))
                else:
                    listing.images.append(ImageEntry(self._below(path), place.name, part))

    def _outside(self, folder: Path) -> list[SkippedFile]:
        """What lies in a folder of classes and in none of these."""
        found = []
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if not entry.is_dir() or is_hidden(entry.name):
                    reason = skip_reason(entry) or OUTSIDE_HINT
                    known = reason in (HIDDEN, OUTSIDE_HINT) or reason.endswith(NOT_A_FILE)
                    found.append(SkippedFile(self._below(Path(entry.path)), reason if known else NO_IMAGES_OUTSIDE))
        return found

    def _below(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
