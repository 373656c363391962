"""Hash files and folders, by their content or by what the file system knows of them."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path


def hash_stats(*paths: Path) -> str:
    """Hash the names, sizes and modification times of files and folders, without reading their content."""
    states = []
    for path in _files(*paths):
        state = path.stat() if path.exists() else None
        states.append(f"{path} {(state.st_size, state.st_mtime_ns, state.st_ino) if state else ''}")
    return hashlib.sha256("\n".join(states).encode("utf-8", "surrogateescape")).hexdigest()


def hash_content(*paths: Path) -> str:
    """Hash the names and the content of files and folders."""
    total = hashlib.sha256()
    for path in _files(*paths):
        total.update(str(path).encode("utf-8", "surrogateescape"))
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file below a folder by its relative path, sorted by it."""
    hashes = {}
    for path in _files(folder):
        with path.open("rb") as file:
            hashes[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return dict(sorted(hashes.items()))


def _files(*paths: Path) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
        for folder, subfolders, names in os.walk(path):
            subfolders.sort()
            yield from (Path(folder, name) for name in sorted(names))
