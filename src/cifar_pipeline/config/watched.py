"""Refuse inputs in which DVC would not see a change.

DVC 3.67 follows a link to a file, and one that a whole dependency is, but none to a folder inside a dependency.
"""

import os
from pathlib import Path

from cifar_pipeline.console import Refusal


def refuse_linked_folders(folder: Path) -> None:
    """Refuse a link to a folder at any depth below `folder`; hidden names are left out. Raises Refusal naming it."""
    for place, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            path = Path(place, name)
            if path.is_symlink():
                raise Refusal(
                    f"{path} is a link to a folder, in which DVC sees no change: put the folder itself in its place, "
                    "or a folder with links to its files."
                )


def refuse_outside(path: str, folder: Path, key: str) -> None:
    """Refuse a path that leads out of the `folder` that DVC watches. Raises Refusal naming the key of conf/."""
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise Refusal(
            f"{key}={path} lies outside of {folder}, where DVC sees no change: put the file into that folder and write "
            f"{key}={Path(path).name}."
        )
