"""Read a folder's files, to compare them with an earlier state."""

from pathlib import Path


def content_of(folder: Path) -> dict[str, bytes]:
    """Return the content of each file below a folder, hidden ones included, by its relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
