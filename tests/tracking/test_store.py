"""All processes of a workspace use one database and one experiment, which belong to the installed MLflow."""

import os
import re
import shlex
import shutil
import sqlite3
from contextlib import closing

import pytest
from mlflow.exceptions import MlflowException

from cifar_pipeline.config import compose
from cifar_pipeline.config.tracking_uri import tracking_uri
from cifar_pipeline.config.validation import find_user_error
from cifar_pipeline.tracking.champion import from_run
from cifar_pipeline.tracking.client import connect
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import Project
from helpers.source_tree import EXPERIMENT, SRC
from helpers.workspace import Command

PROCESSES = 3
CONNECT = """
from cifar_pipeline.utils.console import configure_logging
configure_logging()
from cifar_pipeline.tracking.client import connect
print(connect()[1])
"""


def test_concurrent_processes_create_one_database(tmp_path):
    Project.made(tmp_path)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_"))}
    environment = inherited | {"PYTHONPATH": str(SRC)}
    (tmp_path / "connect.py").write_text(CONNECT)
    commands = [Command(("python", "connect.py"), tmp_path, environment) for _ in range(PROCESSES)]
    (experiment,) = {command.end() for command in commands}
    assert experiment.strip().isdigit()
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        names = [name for (name,) in database.execute("SELECT name FROM experiments WHERE name != 'Default'")]
        assert names == [EXPERIMENT]
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_temporary_workspace_uses_the_main_workspaces_database(workspace, tmp_path, monkeypatch):
    client, experiment = connect()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(workspace))
    assert tracking_uri() == f"sqlite:///{workspace / 'mlflow.db'}"
    assert connect()[1] == experiment
    assert client.get_experiment(experiment).artifact_location == (workspace / "mlruns").as_uri()
    assert list(tmp_path.iterdir()) == []


def test_a_server_in_the_environment_takes_precedence_over_the_file(workspace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert tracking_uri() == "http://127.0.0.1:9"


@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_variable_is_not_a_server(workspace, monkeypatch, empty):
    if empty is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", empty)
    assert tracking_uri().startswith("sqlite:///")


@pytest.fixture
def database(tmp_path, empty_database, monkeypatch):
    """Change to an empty workspace, whose path has what SQLAlchemy would read as something else; yield its database."""
    root = tmp_path / "a%20b?c#d"
    root.mkdir()
    shutil.copy(empty_database, root)
    monkeypatch.chdir(root)
    monkeypatch.setattr(compose, "_experiment_name", EXPERIMENT)  # There is no conf/.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # MLflow sets it; monkeypatch restores it.
    return root / "mlflow.db"


def test_a_database_is_in_the_workspace_whatever_characters_are_in_its_path(database):
    client, experiment = connect()
    assert client.get_experiment(experiment).artifact_location == (database.parent / "mlruns").as_uri()
    run = client.create_run(experiment).info.run_id
    client.log_text(run, "logged", "note.txt")
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT run_uuid FROM runs").fetchall() == [(run,)]
    assert [path.read_text(encoding="utf-8") for path in database.parent.glob("mlruns/**/note.txt")] == ["logged"]
    assert [path.name for path in database.parent.parent.iterdir()] == [database.parent.name]


def test_a_name_that_is_no_utf8_is_a_mistake_of_the_user(database):
    with pytest.raises(MlflowException) as raised:
        from_run("caf\udce9", "last")
    assert "caf\udce9 is not UTF-8" in str(find_user_error(raised.value))


def test_a_database_of_another_version_is_not_upgraded_without_a_backup(database):
    versions = {"f5a4f2784254": "an older MLflow", "0123456789ab": "a newer MLflow"}
    for version, writer in versions.items():
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
            connection.execute("DROP TABLE IF EXISTS jobs")  # MLflow would upgrade a database without one of its tables
        with pytest.raises(UserError, match=f"mlflow.db was written by {writer} than the installed") as raised:
            connect()
        with closing(sqlite3.connect(database)) as connection:
            assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(version,)]
        if "older" in writer:
            commands = re.findall("`(.*?)`", str(raised.value))
            assert [shlex.split(command) for command in commands] == [
                ["cp", str(database), f"{database}.backup"],
                ["mlflow", "db", "upgrade", tracking_uri()],
            ]
