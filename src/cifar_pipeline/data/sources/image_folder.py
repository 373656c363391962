"""A folder with a folder of pictures for each class, whole or parted into train, val and test."""

from pathlib import Path

from cifar_pipeline.console import Refusal, warn
from cifar_pipeline.data.folders import files_in
from cifar_pipeline.data.official import TEST, TRAIN, VAL
from cifar_pipeline.data.pictures import SUFFIXES
from cifar_pipeline.data.sources.own_pictures import Listed, OwnPictures

# What the folders of parts are called.
NAMED = {"train": TRAIN, "training": TRAIN, "val": VAL, "valid": VAL, "validation": VAL, "test": TEST, "testing": TEST}


class ImageFolder(OwnPictures):
    """The source of such a folder. A class is what its folder is called; in it pictures may lie at any depth."""

    name = "image_folder"
    wanted = (
        "put the pictures of each class into a folder of its name, at least two of them, either there or below `train` "
        "(and `val`, `test`)."
    )

    def listed(self) -> list[Listed]:
        """The pictures of every class, by name. Raises Refusal where folders of parts stand beside those of classes."""
        folders = _folders(self.root)
        parts = [folder for folder in folders if folder.name.lower() in NAMED]
        if not parts:
            return self._of_classes(self.root, "")
        if len(parts) < len(folders):
            others = ", ".join(folder.name for folder in folders if folder not in parts)
            raise Refusal(
                f"{self.root} holds folders of parts ({', '.join(folder.name for folder in parts)}) beside others "
                f"({others}): put the classes below the parts, or call a class otherwise."
            )
        if TRAIN not in {NAMED[folder.name.lower()] for folder in parts}:
            raise Refusal(f"{self.root} has {', '.join(folder.name for folder in parts)} and no `train`: {self.wanted}")
        return [one for folder in parts for one in self._of_classes(folder, NAMED[folder.name.lower()])]

    def _of_classes(self, folder: Path, part: str) -> list[Listed]:
        outside = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()]
        if outside:
            warn(f"{folder}: {len(outside):,} pictures lie in no class's folder and are left out.")
        return [
            Listed(path.relative_to(self.root).as_posix(), place.name, part)
            for place in _folders(folder)
            for path, reason in files_in(place)
            if not reason
        ]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
