"""What the tests want to know about a sweep in a workspace's MLflow database."""

import csv
import io
import json
import re
from pathlib import Path

from mlflow.entities import Run

from helpers.workspace import Workspace

PARENT = "mlflow.parentRunId"


def sweeps(workspace: Workspace) -> list[Run]:
    """The parent runs, the oldest first."""
    return [run for run in workspace.runs() if "sweep" in run.data.tags]


def the_sweep(workspace: Workspace) -> Run:
    (sweep,) = sweeps(workspace)
    return sweep


def children(workspace: Workspace, parent: Run) -> list[Run]:
    return [run for run in workspace.runs() if run.data.tags.get(PARENT) == parent.info.run_id]


def trials(parent: Run) -> list[str]:
    """The run id of each trial, in their order."""
    return [json.loads(text)["run"] for key, text in sorted(parent.data.tags.items()) if key.startswith("trial.")]


def in_order(workspace: Workspace, parent: Run) -> list[Run]:
    """The run of each trial, in their order, whichever began first."""
    return [workspace.mlflow.get_run(run_id) for run_id in trials(parent)]


def rows(workspace: Workspace, parent: Run) -> list[dict[str, str]]:
    """The table that the sweep's run keeps."""
    return list(csv.DictReader(io.StringIO(artifact(workspace, parent, "comparison.csv").decode())))


def artifact(workspace: Workspace, run: Run, name: str) -> bytes:
    return Path(workspace.mlflow.download_artifacts(run.info.run_id, name)).read_bytes()


def trained(said: str) -> list[int]:
    """The number of each trial that was trained from its first epoch on."""
    return [int(number) for number in re.findall(r"^\[(\d+)\] epoch 1/", said, re.MULTILINE)]


def is_whole(workspace: Workspace, said: str, count: int, epochs: int = 2) -> None:
    """The jobs are one sweep's children with all their metrics, and the table has their numbers."""
    sweep = the_sweep(workspace)
    jobs = children(workspace, sweep)
    assert {job.info.status for job in [sweep, *jobs]} == {"FINISHED"}
    assert {job.info.run_id for job in jobs} == set(trials(sweep)) and len(jobs) == count
    for metric in ("train/loss", "val/accuracy", "lr"):
        assert [workspace.logged(job, metric) for job in jobs] == [list(range(1, epochs + 1))] * count
    numbers = {job.info.run_id: job.data.metrics["val/loss"] for job in jobs}
    assert {row["run_id"]: float(row["val/loss"]) for row in rows(workspace, sweep)} == numbers
    assert "Traceback" not in said and "locked" not in said


def folder(said: str) -> str:
    """Where the comparison was kept."""
    (found,) = re.findall(r"^Kept in (\S+) and", said, re.MULTILINE)
    return found
