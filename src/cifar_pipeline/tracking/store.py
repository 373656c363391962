"""The MLflow database of the main workspace, or the server that MLFLOW_TRACKING_URI names."""

import logging
import os
import sqlite3
from pathlib import Path
from typing import Any

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from sqlalchemy import event
from sqlalchemy.engine import Engine

from cifar_pipeline.config.workspace import main_workspace
from cifar_pipeline.console import Refusal, warn
from cifar_pipeline.tracking.client import CleanClient
from cifar_pipeline.tracking.moved import FOLDER, former_root, relocate

EXPERIMENT = "cifar-pipeline"
# A server that is gone is noticed in seconds; MLflow's own retries take minutes.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
# How long a process waits for others to have written to a SQLite file; MLflow's 20 s are few for many jobs at once.
LONGEST_WAIT = 300
WAIT = f"PRAGMA busy_timeout = {1000 * LONGEST_WAIT}"


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
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    uri = tracking_uri()
    mlflow.set_tracking_uri(uri)
    lock = main_workspace() / ".cache" / "mlflow.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        client = CleanClient(uri)
        if uri.startswith("sqlite:///"):
            _write_ahead(Path(uri.removeprefix("sqlite:///")))
        return client, _experiment(client, uri)


def known_run(client: MlflowClient, run_id: str) -> Run | None:
    """The run with this id; None where the store doesn't have it, or where it was deleted."""
    try:
        run = client.get_run(run_id) if run_id else None
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run is not None and run.info.lifecycle_stage == "active" else None


def _write_ahead(database: Path) -> None:
    """Let readers and a writer of a SQLite file go on beside each other; MLflow's default makes them wait."""
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


@event.listens_for(Engine, "connect")
def _wait_for_others(connection: Any, record: Any) -> None:
    """Have every connection of this process to a SQLite file, whoever opens it, wait instead of giving up."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute(WAIT)


@event.listens_for(Engine, "before_cursor_execute", retval=True)
def _go_on_waiting(connection: Any, cursor: Any, statement: str, values: Any, context: Any, many: bool) -> Any:
    """Have it stay so: MLflow sets its own time again in each session."""
    return WAIT if statement.startswith(WAIT.partition("=")[0]) else statement, values


def _experiment(client: MlflowClient, uri: str) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return _new_experiment(client, uri)
    if experiment.lifecycle_stage != "active":
        raise Refusal(
            f"The experiment {EXPERIMENT} was deleted from this MLflow store, and its name stays taken: `mlflow "
            f"experiments restore --experiment-id {experiment.experiment_id}`, with MLFLOW_TRACKING_URI set to "
            "the store, brings it back."
        )
    _follow_the_project(uri, experiment.artifact_location)
    return str(experiment.experiment_id)


def _new_experiment(client: MlflowClient, uri: str) -> str:
    # MLflow's own default would be a folder below whatever directory the first process happens to run in.
    local = (main_workspace() / FOLDER).as_uri() if uri.startswith("sqlite:///") else None
    # Without this kind the page opens on what it has for language models.
    kind = {"mlflow.experimentKind": "custom_model_development"}
    try:
        return str(client.create_experiment(EXPERIMENT, artifact_location=local, tags=kind))
    except MlflowException as error:
        # On a server another workspace may have made it meanwhile: the lock is this workspace's own.
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if error.error_code != "RESOURCE_ALREADY_EXISTS" or experiment is None:
            raise
        return str(experiment.experiment_id)


def _follow_the_project(uri: str, location: str) -> None:
    """Let this workspace's own database name its files here, where the project was moved or copied since."""
    root, database = main_workspace(), Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or database.resolve() != root / "mlflow.db":
        return
    former = former_root(location, root)
    if former is not None:
        count = relocate(database, former, root)
        warn(f"This project was in {former} before: {count} paths in its MLflow database now name {root}.")
