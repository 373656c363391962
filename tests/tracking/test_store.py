"""All processes of a workspace use one database and one experiment, also if they create it concurrently."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from cifar_pipeline.tracking.client import connect, tracking_uri
from helpers.config_project import Project
from helpers.source_tree import SRC

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
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CONNECT],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(PROCESSES)
    ]
    results = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    assert [code for _, _, code in results] == [0] * PROCESSES, [error for _, error, _ in results]
    assert {error for _, error, _ in results} == {""}
    assert len({printed for printed, _, _ in results}) == 1
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        names = [name for (name,) in database.execute("SELECT name FROM experiments WHERE name != 'Default'")]
        assert names == ["cifar-pipeline"]
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
