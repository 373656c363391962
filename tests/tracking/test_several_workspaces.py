"""Workspaces on one server: each ends what its own killed processes left, and nothing of the others'."""

import os
import shutil
import subprocess
import sys

import pytest
from mlflow import MlflowClient

from cifar_pipeline.tracking.client import connect
from cifar_pipeline.tracking.runs import training_run
from cifar_pipeline.tracking.stale_runs import close_stale_runs
from cifar_pipeline.tracking.sweeps import open_sweep
from cifar_pipeline.utils.atomic import exclusive_lock
from cifar_pipeline.utils.paths import runs_cache_dir, sweep_dir
from helpers.mounts import OWN_MOUNTS, needs_mounts
from helpers.source_tree import SRC

# A container's process: in its workspace, which has the same path in each, at a training until its input ends.
TRAINING = """
import sys
from cifar_pipeline.utils.paths import trainings_cache
from cifar_pipeline.utils.atomic import only_one
from cifar_pipeline.tracking.runs import training_run
data = {"name": "digits", "hash": "0" * 64, "source": "scikit-learn"}
with only_one(trainings_cache() / sys.argv[1]), training_run(sys.argv[1], "sgd-mse-0", {"seed": 0}, data, "") as run:
    print(run.id, flush=True)
    sys.stdin.read()
"""
DATA = {"name": "digits", "hash": "0123456789abcdef" * 4, "source": "scikit-learn"}


@pytest.fixture
def client(workspace, tmp_path, empty_database, monkeypatch) -> MlflowClient:
    """Of the one database that all folders use."""
    shutil.copy(empty_database, tmp_path / "shared.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'shared.db'}")
    return connect()[0]


@pytest.fixture
def elsewhere(workspace, tmp_path, monkeypatch):
    """Another workspace under the hostname of this one, which is entered by a call."""
    return lambda: monkeypatch.chdir(tmp_path)


def opened(fingerprint: str):
    return training_run(fingerprint, "sgd-mse-0", {"seed": 0}, DATA)


def left_running(client: MlflowClient, fingerprint: str) -> str:
    """The run of a process that was killed."""
    with opened(fingerprint) as run:
        pass
    client.update_run(run.id, status="RUNNING")
    return run.id


def status(client: MlflowClient, run_id: str) -> str:
    return client.get_run(run_id).info.status


def test_a_run_of_another_workspace_is_left_alone(client, elsewhere, monkeypatch, workspace):
    theirs = left_running(client, "theirs")
    elsewhere()
    mine = left_running(client, "mine")
    with opened("next"):
        assert (status(client, theirs), status(client, mine)) == ("RUNNING", "KILLED")
    monkeypatch.chdir(workspace)
    with opened("their next"):
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


def test_the_same_training_in_another_workspace_is_a_run_of_its_own(client, elsewhere):
    with opened("same") as theirs:
        elsewhere()
        with opened("same") as mine:
            assert mine.id != theirs.id
        assert (status(client, theirs.id), status(client, mine.id)) == ("RUNNING", "FINISHED")


def test_a_restarted_container_ends_what_it_left(client, monkeypatch):
    left = left_running(client, "in a container")
    monkeypatch.setattr("platform.node", lambda: "0123456789ab")  # a new one has another hostname
    with opened("after the restart"):
        assert status(client, left) == "KILLED"


def test_a_run_is_known_as_of_this_workspace_from_its_first_moment(client, monkeypatch):
    """Killed right after its run was made, a training leaves one that the next process ends."""
    monkeypatch.setattr(MlflowClient, "update_run", lambda *_, **__: (_ for _ in ()).throw(SystemError))
    with pytest.raises(SystemError), opened("just made"):
        pass
    monkeypatch.undo()
    experiment = connect()[1]
    (run,) = client.search_runs([experiment], "tags.fingerprint = 'just made'")
    assert run.info.status == "RUNNING"
    close_stale_runs(client, experiment, "another", "")
    assert status(client, run.info.run_id) == "KILLED"


def test_a_sweep_whose_process_is_gone_is_ended_and_one_that_is_held_is_not(client, elsewhere):
    left, _ = open_sweep("left", "sweep", {})
    held, _ = open_sweep("held", "sweep", {})
    with exclusive_lock(sweep_dir("held")), opened("beside them"):
        assert (status(client, left), status(client, held)) == ("KILLED", "RUNNING")
        elsewhere()
        other, _ = open_sweep("held", "sweep", {})
        assert other != held


def test_a_copied_workspace_ends_the_runs_in_its_copied_database(workspace, monkeypatch, empty_database, tmp_path):
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_database, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    client = connect()[0]
    left = left_running(client, "copied")
    client.set_tag(left, "workspace", "of the original")
    with opened("in the copy"):
        assert status(client, left) == "KILLED"


def test_a_training_that_is_held_is_not_ended(client):
    run = left_running(client, "held training")
    with exclusive_lock(runs_cache_dir() / "held training"), opened("beside it"):
        assert status(client, run) == "RUNNING"
