"""Hash files and folders, by their content or by what the file system knows of them."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from mmap import ACCESS_READ, mmap
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
        total.update(bytes.fromhex(hash_file(path)))
    return total.hexdigest()


def hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file below a folder by its relative path, sorted by it."""
    hashes = {path.relative_to(folder).as_posix(): hash_file(path) for path in _files(folder)}
    return dict(sorted(hashes.items()))


DIGEST_BYTES = hashlib.sha256().digest_size


def append_digest(path: Path) -> None:
    """Append the SHA-256 of a file to it."""
    with path.open("rb+") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        file.write(digest)


def is_intact(path: Path) -> bool:
    """Return whether a file ends with the digest that `append_digest` wrote for the content before it."""
    if path.stat().st_size <= DIGEST_BYTES:
        return False
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content, memoryview(content) as view:
        return hashlib.sha256(view[:-DIGEST_BYTES]).digest() == bytes(view[-DIGEST_BYTES:])


HASHES_FILE = "hashes.json"


def write_hashes(folder: Path, names: Sequence[str]) -> None:
    """Write the SHA-256 of some files of a folder next to them."""
    content = json.dumps({name: hash_file(folder / name) for name in names}, indent=2) + "\n"
    (folder / HASHES_FILE).write_text(content, encoding="utf-8")


def has_changed(path: Path) -> bool:
    """Return whether a file has changed since `write_hashes`; False if no hash of it was written."""
    try:
        expected = json.loads((path.parent / HASHES_FILE).read_text(encoding="utf-8"))[path.name]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(hash_file(path) != expected)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changed_message(path: Path) -> str:
    """Return the sentence about a file of a model that has changed."""
    return (
        f"{path} has changed since it was written: `dvc repro -f train` makes it again; after a change of your own, "
        f"remove {path.parent / HASHES_FILE}."
    )


def _files(*paths: Path) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
        for folder, subfolders, names in os.walk(path):
            subfolders.sort()
            yield from (Path(folder, name) for name in sorted(names))
