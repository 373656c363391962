"""The MLflow database of the main workspace, or the server that MLFLOW_TRACKING_URI names.

MLflow's client with clean texts: no secret is sent, and nothing that a store or a terminal cannot take.

MLflow's database after the project was moved or copied: it names the files of runs and models by absolute paths.
"""

import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy import event
from sqlalchemy.engine import Engine

from cifar_pipeline.utils.console import warning
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.paths import main_workspace
from cifar_pipeline.utils.text import redact_and_escape


class CleanClient(MlflowClient):
    """A client whose texts are redacted, and whose unsafe characters are escaped, before they are sent."""

    def create_run(
        self, experiment_id: str, start_time: int | None = None, tags: Any = None, run_name: str | None = None
    ) -> Run:
        """Create a run with clean tags and name."""
        return super().create_run(experiment_id, start_time, _clean_values(tags), _clean(run_name))

    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Sequence[Param] = (),
        tags: Sequence[RunTag] = (),
        synchronous: bool | None = None,
    ) -> Any:
        """Log metrics as they are, parameters and tags clean."""
        return super().log_batch(
            run_id,
            metrics,
            [Param(param.key, _clean(param.value)) for param in params],
            [RunTag(tag.key, _clean(tag.value)) for tag in tags],
            synchronous,
        )

    def set_tag(self, run_id: str, key: str, value: Any, synchronous: bool | None = None) -> Any:
        """Set a tag to a clean text."""
        return super().set_tag(run_id, key, _clean(value), synchronous)

    def log_text(self, run_id: str, text: str, artifact_file: str) -> None:
        """Log a clean text as a file."""
        super().log_text(run_id, _clean(text), artifact_file)

    def create_model_version(
        self, name: str, source: str, run_id: str | None = None, tags: Any = None, *arguments: Any, **options: Any
    ) -> Any:
        """Register a version with clean tags."""
        return super().create_model_version(name, source, run_id, _clean_values(tags), *arguments, **options)

    def set_model_version_tag(
        self, name: str, version: str | None = None, key: str | None = None, value: Any = None, stage: str | None = None
    ) -> None:
        """Set a version's tag to a clean text."""
        super().set_model_version_tag(name, version, key, _clean(value), stage)


def _clean(value: Any) -> Any:
    return redact_and_escape(value) if isinstance(value, str) else value


def _clean_values(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return {key: _clean(value) for key, value in values.items()} if values is not None else None


# Where MLflow keeps places of files: a table, its columns, and which rows of it.
PATH_COLUMNS = (
    ("experiments", ("artifact_location",), ""),
    ("runs", ("artifact_uri",), ""),
    ("logged_models", ("artifact_location",), ""),
    ("model_versions", ("source", "storage_location"), ""),
    ("trace_tags", ("value",), "WHERE key = 'mlflow.artifactLocation'"),
)
ARTIFACT_DIR = "mlruns"


def previous_root(location: str, root: Path) -> Path | None:
    """Where the project was when `location`, an experiment's place of files, was written; None where that is `root`.

    None as well for a place that this project didn't choose, such as a bucket or another folder.
    """
    folder = _path(location)
    if folder is None or folder.name != ARTIFACT_DIR or folder == root / ARTIFACT_DIR:
        return None
    return folder.parent


def relocate(database: Path, old: Path, new: Path) -> int:
    """Let the database name files below `new` instead of `old`, in one transaction; return how many names changed.

    A file that is still in the old place, and not in the new one, keeps its name.
    """
    changed = 0
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        connection.execute("BEGIN IMMEDIATE")
        for table, columns, rows in PATH_COLUMNS:
            for column in columns if _has(connection, table) else ():
                for row, value in connection.execute(f"SELECT rowid, {column} FROM {table} {rows}").fetchall():
                    if (moved := _update_paths(value, old, new, is_kept=table != "experiments")) is not None:
                        connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (moved, row))
                        changed += 1
    return changed


def _update_paths(value: str | None, old: Path, new: Path, is_kept: bool) -> str | None:
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
    yield (old / ARTIFACT_DIR).as_uri(), (new / ARTIFACT_DIR).as_uri()
    yield str(old / ARTIFACT_DIR), str(new / ARTIFACT_DIR)


def _path(location: str) -> Path | None:
    """The folder on this machine that MLflow names so; None for a place elsewhere."""
    parts = urlsplit(location)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(url2pathname(parts.path))
    return Path(location) if Path(location).is_absolute() else None


def _has(connection: sqlite3.Connection, table: str) -> bool:
    return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone())


DEFAULT_EXPERIMENT_NAME = "cifar-pipeline"
# A server that is gone is noticed in seconds; MLflow's own retries take minutes.
HTTP_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
# How long a process waits for others to have written to a SQLite file; MLflow's 20 s are few for many jobs at once.
MAX_WAIT_SECONDS = 300
BUSY_TIMEOUT_SQL = f"PRAGMA busy_timeout = {1000 * MAX_WAIT_SECONDS}"


def tracking_uri() -> str:
    """The address of the store that every run of this workspace goes to."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{main_workspace() / 'mlflow.db'}"


def connect() -> tuple[MlflowClient, str]:
    """A client, and the id of the one experiment of this project.

    A new SQLite database is made under a lock: processes that all find it missing break each other's migrations.
    """
    # Lines about tables and migrations, which nobody here can act on.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # What it logs it raises as well: a traceback before the sentence.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    for name, value in HTTP_LIMITS.items():
        os.environ.setdefault(name, value)
    uri = tracking_uri()
    mlflow.set_tracking_uri(uri)
    lock = main_workspace() / ".cache" / "mlflow.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        client = CleanClient(uri)
        if uri.startswith("sqlite:///"):
            _enable_wal(Path(uri.removeprefix("sqlite:///")))
        return client, _experiment(client, uri)


def get_run_or_none(client: MlflowClient, run_id: str) -> Run | None:
    """The run with this id; None where the store doesn't have it, or where it was deleted."""
    try:
        run = client.get_run(run_id) if run_id else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run is not None and run.info.lifecycle_stage == "active" else None


def _enable_wal(database: Path) -> None:
    """Let readers and a writer of a SQLite file go on beside each other; MLflow's default makes them wait."""
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


@event.listens_for(Engine, "connect")
def _set_busy_timeout(connection: Any, record: Any) -> None:
    """Have every connection of this process to a SQLite file, whoever opens it, wait instead of giving up."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute(BUSY_TIMEOUT_SQL)


@event.listens_for(Engine, "before_cursor_execute", retval=True)
def _keep_busy_timeout(connection: Any, cursor: Any, statement: str, values: Any, context: Any, many: bool) -> Any:
    """Have it stay so: MLflow sets its own time again in each session."""
    return BUSY_TIMEOUT_SQL if statement.startswith(BUSY_TIMEOUT_SQL.partition("=")[0]) else statement, values


def _experiment(client: MlflowClient, uri: str) -> str:
    experiment = client.get_experiment_by_name(DEFAULT_EXPERIMENT_NAME)
    if experiment is None:
        return _new_experiment(client, uri)
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"The experiment {DEFAULT_EXPERIMENT_NAME} was deleted from this MLflow store, and its name stays taken: `mlflow "
            f"experiments restore --experiment-id {experiment.experiment_id}`, with MLFLOW_TRACKING_URI set to "
            "the store, brings it back."
        )
    _follow_the_project(uri, experiment.artifact_location)
    return str(experiment.experiment_id)


def _new_experiment(client: MlflowClient, uri: str) -> str:
    # MLflow's own default would be a folder below whatever directory the first process happens to run in.
    local = (main_workspace() / ARTIFACT_DIR).as_uri() if uri.startswith("sqlite:///") else None
    # Without this kind the page opens on what it has for language models.
    kind = {"mlflow.experimentKind": "custom_model_development"}
    try:
        return str(client.create_experiment(DEFAULT_EXPERIMENT_NAME, artifact_location=local, tags=kind))
    except MlflowException as error:
        # On a server another workspace may have made it meanwhile: the lock is this workspace's own.
        experiment = client.get_experiment_by_name(DEFAULT_EXPERIMENT_NAME)
        if error.error_code != "RESOURCE_ALREADY_EXISTS" or experiment is None:
            raise
        return str(experiment.experiment_id)


def _follow_the_project(uri: str, location: str) -> None:
    """Let this workspace's own database name its files here, where the project was moved or copied since."""
    root, database = main_workspace(), Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or database.resolve() != root / "mlflow.db":
        return
    former = previous_root(location, root)
    if former is not None:
        count = relocate(database, former, root)
        warning(f"This project was in {former} before: {count} paths in its MLflow database now name {root}.")
