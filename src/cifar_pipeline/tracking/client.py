"""Connect to MLflow: the SQLite database of the main workspace, or the server in MLFLOW_TRACKING_URI.

The client redacts secrets and escapes control characters in every text that it sends. MLflow's database contains
absolute paths to the files of runs and models; `connect` updates them after the project was moved or copied.

Stale runs are closed: those still RUNNING in MLflow although their process was killed.

A run's tag names its workspace, and a process locks a file in that workspace while it works on the run, so only
processes of the same workspace can tell whether a run is stale. All runs in a workspace's own database belong to it,
also after the database was copied together with the workspace.
"""

import functools
import logging
import os
import shlex
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import mlflow
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from sqlalchemy import NullPool, create_engine, event
from sqlalchemy.engine import Engine

from cifar_pipeline.config.compose import experiment_name
from cifar_pipeline.config.tracking_uri import (
    DATABASE_SCHEMES,
    TRACKING_VARIABLE,
    own_database,
    sqlite_path,
    tracking_uri,
)
from cifar_pipeline.utils.atomic import is_locked
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.paths import is_training_locked, main_workspace, sweep_dir, workspace_id
from cifar_pipeline.utils.text import redact_and_escape

log = logging.getLogger(__name__)

ARTIFACT_DIR = "mlruns"
# Where MLflow's database stores paths: table, columns, and a condition on the rows.
PATH_COLUMNS = (
    ("experiments", ("artifact_location",), ""),
    ("runs", ("artifact_uri",), ""),
    ("logged_models", ("artifact_location",), ""),
    ("model_versions", ("source", "storage_location"), ""),
    ("trace_tags", ("value",), "WHERE key = 'mlflow.artifactLocation'"),
)
# So that a server that is down is noticed within seconds; MLflow's default retries take minutes.
HTTP_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
# How long a process waits for a lock on the SQLite file; MLflow's 20 s are too short for many parallel jobs.
MAX_WAIT_SECONDS = 300
BUSY_TIMEOUT_SQL = f"PRAGMA busy_timeout = {1000 * MAX_WAIT_SECONDS}"


class CleanClient(MlflowClient):
    """MLflow client that redacts secrets and escapes control characters in texts."""

    def create_run(
        self, experiment_id: str, start_time: int | None = None, tags: Any = None, run_name: str | None = None
    ) -> Run:
        """Create a run, its name and tags cleaned."""
        return super().create_run(experiment_id, start_time, _clean_values(tags), _clean(run_name))

    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Sequence[Param] = (),
        tags: Sequence[RunTag] = (),
        synchronous: bool | None = None,
    ) -> Any:
        """Log metrics unchanged, parameters and tags cleaned."""
        return super().log_batch(
            run_id,
            metrics,
            [Param(param.key, _clean(param.value)) for param in params],
            [RunTag(tag.key, _clean(tag.value)) for tag in tags],
            synchronous,
        )

    def set_tag(self, run_id: str, key: str, value: Any, synchronous: bool | None = None) -> Any:
        """Set a tag to a cleaned text."""
        return super().set_tag(run_id, key, _clean(value), synchronous)

    def log_text(self, run_id: str, text: str, artifact_file: str) -> None:
        """Log a cleaned text as an artifact."""
        super().log_text(run_id, _clean(text), artifact_file)

    def create_model_version(
        self, name: str, source: str, run_id: str | None = None, tags: Any = None, *arguments: Any, **options: Any
    ) -> Any:
        """Register a version, its tags cleaned."""
        return super().create_model_version(name, source, run_id, _clean_values(tags), *arguments, **options)

    def set_model_version_tag(
        self, name: str, version: str | None = None, key: str | None = None, value: Any = None, stage: str | None = None
    ) -> None:
        """Set a version's tag to a cleaned text."""
        super().set_model_version_tag(name, version, key, _clean(value), stage)


def _clean(value: Any) -> Any:
    return redact_and_escape(value) if isinstance(value, str) else value


def _clean_values(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return {key: _clean(value) for key, value in values.items()} if values is not None else None


def previous_root(location: str, root: Path) -> Path | None:
    """Return the project's root when `location`, an experiment's artifact directory, was written.

    None if that is `root`, or if the user chose the location, such as a bucket or another directory.
    """
    folder = _path(location)
    if folder is None or folder.name != ARTIFACT_DIR or folder == root / ARTIFACT_DIR:
        return None
    return folder.parent


def relocate(database: Path, old: Path, new: Path) -> int:
    """Change the paths in the database from below `old` to below `new`, in one transaction; return their number.

    The path of a file that exists below `old` only is not changed.
    """
    changed = 0
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        connection.execute("BEGIN IMMEDIATE")
        for table, columns, rows in PATH_COLUMNS:
            for column in columns if _has(connection, table) else ():
                for row, value in connection.execute(f"SELECT rowid, {column} FROM {table} {rows}").fetchall():
                    if (moved := _update_path(value, old, new, keep_existing=table != "experiments")) is not None:
                        connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (moved, row))
                        changed += 1
    return changed


def _update_path(value: str | None, old: Path, new: Path, keep_existing: bool) -> str | None:
    """Return the new path; None to leave it, with `keep_existing` also if the file exists in the old directory only."""
    for old_prefix, new_prefix in _prefixes(old, new):
        if value == old_prefix or (value or "").startswith(f"{old_prefix}/"):
            assert value is not None
            moved = new_prefix + value.removeprefix(old_prefix)
            old_path, new_path = _path(value), _path(moved)
            if keep_existing and old_path and new_path and old_path.exists() and not new_path.exists():
                return None
            return moved
    return None


def _prefixes(old: Path, new: Path) -> Iterator[tuple[str, str]]:
    """Yield old and new artifact directory in both of MLflow's notations, as a URI and as a path."""
    yield (old / ARTIFACT_DIR).as_uri(), (new / ARTIFACT_DIR).as_uri()
    yield str(old / ARTIFACT_DIR), str(new / ARTIFACT_DIR)


def _path(location: str) -> Path | None:
    """Convert a location to a path on this machine; None for another scheme, host, or a relative path."""
    parts = urlsplit(location)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(url2pathname(parts.path))
    return Path(location) if Path(location).is_absolute() else None


def _has(connection: sqlite3.Connection, table: str) -> bool:
    return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone())


def connect() -> tuple[MlflowClient, str]:
    """Return a client and the id of the experiment that the configuration names.

    A new SQLite database is created under a lock: parallel processes would break each other's migrations.

    Raises:
        UserError: MLflow cannot open the store, its database is of another version, or the experiment was deleted.
    """
    for variable, value in HTTP_LIMITS.items():
        os.environ.setdefault(variable, value)
    uri, name = tracking_uri(), experiment_name()
    mlflow.set_tracking_uri(uri)
    lock = main_workspace() / ".cache" / "mlflow.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        if uri.partition(":")[0].partition("+")[0] in DATABASE_SCHEMES:
            require_same_version(uri)
        client = CleanClient(uri)
        if database := sqlite_path(uri):
            enable_wal(database)
        return client, _experiment(client, uri, name)


@functools.cache
def require_same_version(uri: str) -> None:
    """Check the version of a database before MLflow opens it, which would upgrade some databases without a backup.

    Raises:
        UserError: the database belongs to an older or a newer version of MLflow.
        SQLAlchemyError: the database does not respond.
    """
    if (database := sqlite_path(uri)) and not database.exists():
        return
    engine = create_engine(uri, poolclass=NullPool)
    with engine.connect() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
    scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    if revision is None or revision in scripts.get_heads():
        return
    name = str(database or f"The database in {TRACKING_VARIABLE}")
    try:
        scripts.get_revision(revision)
    except CommandError:
        raise UserError(
            f"{name} was written by a newer MLflow than the installed {mlflow.__version__}: install the version that "
            f"wrote it (`pip install mlflow==VERSION`), or restore a backup from before."
        ) from None
    address = shlex.quote(uri) if database else f'"${TRACKING_VARIABLE}"'
    copy = shlex.join(["cp", name, f"{name}.backup"]) if database else ""
    raise UserError(
        f"{name} was written by an older MLflow than the installed {mlflow.__version__}: end what uses it, make a "
        f"backup{f' (`{copy}`)' if copy else ''}, and run `mlflow db upgrade {address}`."
    )


def get_run_or_none(client: MlflowClient, run_id: str) -> Run | None:
    """Fetch a run by id; None if the store does not have it, or if it was deleted."""
    try:
        run = client.get_run(run_id) if run_id else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run is not None and run.info.lifecycle_stage == "active" else None


def enable_wal(database: Path) -> None:
    """Enable write-ahead logging, so that readers and a writer do not block each other."""
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


@event.listens_for(Engine, "connect")
def _set_busy_timeout(connection: Any, record: Any) -> None:
    """Make every SQLite connection of this process wait for locks instead of failing."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute(BUSY_TIMEOUT_SQL)


@event.listens_for(Engine, "before_cursor_execute", retval=True)
def _keep_busy_timeout(connection: Any, cursor: Any, statement: str, values: Any, context: Any, many: bool) -> Any:
    """Replace the timeout that MLflow sets in each session."""
    return BUSY_TIMEOUT_SQL if statement.startswith(BUSY_TIMEOUT_SQL.partition("=")[0]) else statement, values


def _experiment(client: MlflowClient, uri: str, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    _require_id(experiment.experiment_id if experiment else "", name)
    if experiment is None:
        return _new_experiment(client, uri, name)
    if experiment.lifecycle_stage != "active":
        store = f"{TRACKING_VARIABLE}={shlex.quote(uri)}"
        raise UserError(
            f"The experiment {name} was deleted from this MLflow store, and its name stays taken: `{store} mlflow "
            f"experiments restore --experiment-id {experiment.experiment_id}` restores it, or set another "
            "mlflow.experiment_name."
        )
    _relocate_if_moved(uri, experiment.artifact_location)
    return str(experiment.experiment_id)


def _require_id(experiment: str, name: str) -> None:
    """Raise UserError if MLFLOW_EXPERIMENT_ID is not the id of the experiment, as MLflow does for both variables."""
    required = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if required and required != experiment:
        found = f"has the id {experiment}" if experiment else "does not exist yet"
        raise UserError(
            f"MLFLOW_EXPERIMENT_ID is {required}, but the experiment {name} (mlflow.experiment_name) {found}: set "
            "MLFLOW_EXPERIMENT_NAME to the name of the experiment with this id, or unset MLFLOW_EXPERIMENT_ID."
        )


def _new_experiment(client: MlflowClient, uri: str, name: str) -> str:
    # MLflow's default is relative to the working directory of the process that creates the experiment.
    artifact_dir = (main_workspace() / ARTIFACT_DIR).as_uri() if sqlite_path(uri) else None
    # Without this tag MLflow opens the experiment on its page for language models.
    tags = {"mlflow.experimentKind": "custom_model_development"}
    try:
        return str(client.create_experiment(name, artifact_location=artifact_dir, tags=tags))
    except MlflowException as error:
        # On a server, another workspace may have created it in between: the lock is local to this workspace.
        experiment = client.get_experiment_by_name(name)
        if error.error_code != "RESOURCE_ALREADY_EXISTS" or experiment is None:
            raise
        return str(experiment.experiment_id)


def _relocate_if_moved(uri: str, location: str) -> None:
    """Update the paths in this workspace's own database if the project was moved or copied."""
    root, database = main_workspace(), own_database()
    if not _is_own_database(uri):
        return
    previous = previous_root(location, root)
    if previous is not None:
        count = relocate(database, previous, root)
        log.warning(f"This project was in {previous} before: changed {count} paths in its MLflow database to {root}.")


# Tag: id of the workspace that a run belongs to, which has the training's checkpoints.
WORKSPACE_TAG = "workspace"
# Tags: number of consecutive crashes of a training's process, and the epoch after which the last one happened.
CRASHES_TAG, CRASH_EPOCH_TAG = "crashes", "crash_epoch"


def close_stale_runs(client: MlflowClient, experiment: str, fingerprint: str, run_id: str) -> None:
    """End the stale runs of this workspace, except `run_id`, which is about to be resumed.

    The caller holds the lock of the training with this fingerprint, so all other RUNNING runs of it are stale.
    """
    condition = "attributes.status = 'RUNNING'"
    if not _is_own_database(tracking_uri()):
        condition += f" and tags.{WORKSPACE_TAG} = '{workspace_id()}'"
    for run in client.search_runs([experiment], condition, ViewType.ACTIVE_ONLY, max_results=1000):
        tags = run.data.tags
        if tags.get("fingerprint", fingerprint) != fingerprint:
            close_if_stale(client, run)
            continue
        is_other = "fingerprint" in tags and run.info.run_id != run_id
        if is_other or ("sweep" in tags and not is_locked(sweep_dir(tags["sweep"]))):
            client.set_terminated(run.info.run_id, "KILLED")


def belongs_to_workspace(run: Run) -> bool:
    """Whether the run belongs to this workspace, whose locks show whether a process works on it."""
    return _is_own_database(tracking_uri()) or run.data.tags.get(WORKSPACE_TAG) == workspace_id()


def _is_own_database(uri: str) -> bool:
    database = sqlite_path(uri)
    return database is not None and database.resolve() == own_database()


def close_if_stale(client: MlflowClient, run: Run, status: str = "KILLED") -> None:
    """End a RUNNING run of this workspace with `status`, unless a process holds the lock of its training."""
    if (
        run.info.status != "RUNNING"
        or not belongs_to_workspace(run)
        or is_training_locked(run.data.tags.get("fingerprint", ""))
    ):
        return
    # Fetched again, because a training ends its run before it releases its lock: it may have ended since.
    run = client.get_run(run.info.run_id)
    if run.info.status == "RUNNING":
        _record_crash(client, run)
        client.set_terminated(run.info.run_id, status)


def crash_count(client: MlflowClient, run: Run) -> int:
    """Return the number of consecutive crashes of this training; a run that is still RUNNING is another crash.

    The caller holds the training's lock, so no process works on it.
    """
    return _record_crash(client, run) if run.info.status == "RUNNING" else int(run.data.tags.get(CRASHES_TAG, 0))


def logged_epochs(client: MlflowClient, run_id: str) -> int:
    """Return the number of epochs whose metrics the run has, which a resumed training must not log twice."""
    return max((metric.step for metric in client.get_metric_history(run_id, "train/loss")), default=0)


def _record_crash(client: MlflowClient, run: Run) -> int:
    """Count a crash of a training's process and return the number of consecutive ones.

    A training that got further than at the last crash probably did not cause it: counting restarts at 1.
    """
    epoch = logged_epochs(client, run.info.run_id)
    made_progress = epoch > int(run.data.tags.get(CRASH_EPOCH_TAG, 0))
    crashes = 1 if made_progress else int(run.data.tags.get(CRASHES_TAG, 0)) + 1
    client.log_batch(run.info.run_id, tags=[RunTag(CRASHES_TAG, str(crashes)), RunTag(CRASH_EPOCH_TAG, str(epoch))])
    return crashes
