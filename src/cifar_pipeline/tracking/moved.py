"""MLflow's database after the project was moved or copied: it names the files of runs and models by absolute paths."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

# Where MLflow keeps places of files: a table, its columns, and which rows of it.
PLACES = (
    ("experiments", ("artifact_location",), ""),
    ("runs", ("artifact_uri",), ""),
    ("logged_models", ("artifact_location",), ""),
    ("model_versions", ("source", "storage_location"), ""),
    ("trace_tags", ("value",), "WHERE key = 'mlflow.artifactLocation'"),
)
FOLDER = "mlruns"


def former_root(location: str, root: Path) -> Path | None:
    """Where the project was when `location`, an experiment's place of files, was written; None where that is `root`.

    None as well for a place that this project didn't choose, such as a bucket or another folder.
    """
    folder = _path(location)
    if folder is None or folder.name != FOLDER or folder == root / FOLDER:
        return None
    return folder.parent


def relocate(database: Path, old: Path, new: Path) -> int:
    """Let the database name files below `new` instead of `old`, in one transaction; return how many names changed.

    A file that is still in the old place, and not in the new one, keeps its name.
    """
    changed = 0
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        connection.execute("BEGIN IMMEDIATE")
        for table, columns, rows in PLACES:
            for column in columns if _has(connection, table) else ():
                for row, value in connection.execute(f"SELECT rowid, {column} FROM {table} {rows}").fetchall():
                    if (moved := _moved(value, old, new, is_kept=table != "experiments")) is not None:
                        connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (moved, row))
                        changed += 1
    return changed


def _moved(value: str | None, old: Path, new: Path, is_kept: bool) -> str | None:
    """The new place of files; None where it stays. In the old place files count where they are `is_kept` there only."""
    for before, after in _forms(old, new):
        if value == before or (value or "").startswith(f"{before}/"):
            assert value is not None
            moved = after + value.removeprefix(before)
            there, here = _path(value), _path(moved)
            if is_kept and there and here and there.exists() and not here.exists():
                return None
            return moved
    return None


def _forms(old: Path, new: Path) -> Iterator[tuple[str, str]]:
    """How MLflow writes a folder: as an address, or as a path."""
    yield (old / FOLDER).as_uri(), (new / FOLDER).as_uri()
    yield str(old / FOLDER), str(new / FOLDER)


def _path(location: str) -> Path | None:
    """The folder on this machine that MLflow names so; None for a place elsewhere."""
    parts = urlsplit(location)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(url2pathname(parts.path))
    return Path(location) if Path(location).is_absolute() else None


def _has(connection: sqlite3.Connection, table: str) -> bool:
    return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone())
