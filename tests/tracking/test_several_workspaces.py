"""Workspaces that share a server: each ends the stale runs of its own killed processes, and no others."""

import os
import shutil
import subprocess
import sys

import pytest
from mlflow import MlflowClient

from cifar_pipeline.tracking.client import close_stale_runs, connect
from cifar_pipeline.tracking.runs import training_run
from cifar_pipeline.tracking.sweeps import open_sweep
from cifar_pipeline.utils.atomic import exclusive_lock
from cifar_pipeline.utils.paths import runs_cache_dir, sweep_dir
from helpers.data_facts import data_facts
from helpers.mounts import OWN_MOUNTS, needs_mounts
from helpers.source_tree import SRC

# Process of a container: trains, in a workspace with the same path in each container, until its input ends.
TRAINING = """
import sys
from cifar_pipeline.utils.paths import runs_cache_dir
from cifar_pipeline.utils.atomic import exclusive_lock
from cifar_pipeline.tracking.runs import training_run
data = {"name": "digits", "hash": "0" * 64, "source": "drawn", "shape": (8, 8, 1), "sizes": {"train": 9}, "classes": 2}
name = sys.argv[1]
with exclusive_lock(runs_cache_dir() / name), training_run(name, "sgd-mse-0", {"seed": 0}, data) as run:
    print(run.id, flush=True)
    sys.stdin.read()
"""
DATA = data_facts("0123456789abcdef" * 4, source="scikit-learn")


@pytest.fixture
def client(workspace, tmp_path, empty_database, monkeypatch) -> MlflowClient:
    """Connect to the one database that all workspaces use."""
    shutil.copy(empty_database, tmp_path / "shared.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'shared.db'}")
    return connect()[0]


@pytest.fixture
def other_workspace(workspace, tmp_path, monkeypatch):
    """Return a function that changes to another workspace with the same hostname."""
    return lambda: monkeypatch.chdir(tmp_path)


def open_run(fingerprint: str):
    return training_run(fingerprint, "sgd-mse-0", {"seed": 0}, DATA)


def make_stale_run(client: MlflowClient, fingerprint: str) -> str:
    """Make a run as a killed process leaves it; return its id."""
    with open_run(fingerprint) as run:
        pass
    client.update_run(run.id, status="RUNNING")
    return run.id


def status(client: MlflowClient, run_id: str) -> str:
    return client.get_run(run_id).info.status


def test_a_run_of_another_workspace_is_not_ended(client, other_workspace, monkeypatch, workspace):
    theirs = make_stale_run(client, "theirs")
    other_workspace()
    mine = make_stale_run(client, "mine")
    with open_run("next"):
        assert (status(client, theirs), status(client, mine)) == ("RUNNING", "KILLED")
    monkeypatch.chdir(workspace)
    with open_run("their next"):
        assert status(client, theirs) == "KILLED"


@pytest.mark.long
@needs_mounts
def test_two_containers_with_one_hostname_and_one_path_end_no_run_of_each_other(client, tmp_path):
    def container(name: str) -> "subprocess.Popen[str]":
        (tmp_path / name).mkdir()
        python = f"cd /mnt && exec '{sys.executable}' -c '{TRAINING}' {name}"
        return subprocess.Popen(
            [*OWN_MOUNTS, "sh", "-c", f"mount --bind '{tmp_path / name}' /mnt && {python}"],
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(SRC),
                "MLFLOW_TRACKING_URI": os.environ["MLFLOW_TRACKING_URI"],
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    first = container("first")
    run = first.stdout.readline().strip()
    second = container("second")
    other = second.stdout.readline().strip()
    assert (status(client, run), status(client, other)) == ("RUNNING", "RUNNING")
    second.communicate()
    first.communicate()
    assert (status(client, run), status(client, other)) == ("FINISHED", "FINISHED")


def test_the_same_training_in_another_workspace_is_another_run(client, other_workspace):
    with open_run("same") as theirs:
        other_workspace()
        with open_run("same") as mine:
            assert mine.id != theirs.id
        assert (status(client, theirs.id), status(client, mine.id)) == ("RUNNING", "FINISHED")


def test_a_restarted_container_ends_its_stale_runs(client, monkeypatch):
    left = make_stale_run(client, "in a container")
    monkeypatch.setattr("platform.node", lambda: "0123456789ab")  # a new one has another hostname
    with open_run("after the restart"):
        assert status(client, left) == "KILLED"


def test_a_run_has_the_tag_of_its_workspace_from_its_creation(client, monkeypatch):
    """The run of a training that was killed right after creating it is ended by the next process."""
    monkeypatch.setattr(MlflowClient, "update_run", lambda *_, **__: (_ for _ in ()).throw(SystemError))
    with pytest.raises(SystemError), open_run("just made"):
        pass
    monkeypatch.undo()
    experiment = connect()[1]
    (run,) = client.search_runs([experiment], "tags.fingerprint = 'just made'")
    assert run.info.status == "RUNNING"
    close_stale_runs(client, experiment, "another", "")
    assert status(client, run.info.run_id) == "KILLED"


def test_a_stale_sweep_is_ended_and_a_locked_one_is_not(client, other_workspace):
    left, _ = open_sweep("left", "sweep", {})
    held, _ = open_sweep("held", "sweep", {})
    with exclusive_lock(sweep_dir("held")), open_run("another training"):
        assert (status(client, left), status(client, held)) == ("KILLED", "RUNNING")
        other_workspace()
        other, _ = open_sweep("held", "sweep", {})
        assert other != held


def test_a_copied_workspace_ends_the_runs_in_its_copied_database(workspace, monkeypatch, empty_database, tmp_path):
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_database, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    client = connect()[0]
    left = make_stale_run(client, "copied")
    client.set_tag(left, "workspace", "of the original")
    with open_run("in the copy"):
        assert status(client, left) == "KILLED"


def test_a_locked_training_is_not_ended(client):
    run = make_stale_run(client, "locked training")
    with exclusive_lock(runs_cache_dir() / "locked training"), open_run("another training"):
        assert status(client, run) == "RUNNING"
