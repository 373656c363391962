"""Read sweeps from a workspace's MLflow database and from the output of `train.py -m`."""

import csv
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mlflow.entities import Run
from PIL import Image

from helpers.dir_snapshot import content_of
from helpers.workspace import Workspace

PARENT = "mlflow.parentRunId"
FOLDS = ("-m", "data.fold=range(3)", "data.folds=3", "optimizer=sgd,adam", "trainer.max_epochs=2")


@dataclass(frozen=True)
class Folds:
    """A sweep over folds, and what the same command printed later."""

    workspace: Workspace
    output: str
    stricter: str
    shown: str


def scenario_folds(workspace: Workspace) -> Folds:
    """A sweep over folds, then with another significance level, then shown again."""
    before = content_of(workspace.root / "data")
    output = workspace.train(*FOLDS)
    stricter = workspace.train(*FOLDS, "comparison.significance_level=0.0001")
    assert content_of(workspace.root / "data") == before
    return Folds(workspace, output, stricter, workspace.run("python", "src/report.py", "sweep"))


def sweeps(workspace: Workspace) -> list[Run]:
    """List the parent runs, oldest first."""
    return [run for run in workspace.runs() if "sweep" in run.data.tags]


def the_sweep(workspace: Workspace) -> Run:
    (sweep,) = sweeps(workspace)
    return sweep


def children(workspace: Workspace, parent: Run) -> list[Run]:
    return [run for run in workspace.runs() if run.data.tags.get(PARENT) == parent.info.run_id]


def trials(parent: Run) -> list[str]:
    """List the run ids of the trials, by number."""
    return [json.loads(text)["run"] for key, text in sorted(parent.data.tags.items()) if key.startswith("trial.")]


def in_order(workspace: Workspace, parent: Run) -> list[Run]:
    """List the runs of the trials, by number."""
    return [workspace.mlflow.get_run(run_id) for run_id in trials(parent)]


def rows(workspace: Workspace, parent: Run) -> list[dict[str, str]]:
    """Read the comparison.csv of the sweep's run."""
    return list(csv.DictReader(io.StringIO(artifact(workspace, parent, "comparison.csv").decode())))


def artifact(workspace: Workspace, run: Run, name: str) -> bytes:
    return Path(workspace.mlflow.download_artifacts(run.info.run_id, name)).read_bytes()


def trained(output: str) -> list[int]:
    """List the numbers of the trials that were trained from their first epoch."""
    return [int(number) for number in re.findall(r"^\[(\d+)\] epoch 1/", output, re.MULTILINE)]


def assert_complete(workspace: Workspace, output: str, count: int, epochs: int = 2) -> None:
    """Check that all jobs are children of one sweep with all their metrics, and that the table has their numbers."""
    sweep = the_sweep(workspace)
    jobs = children(workspace, sweep)
    assert {job.info.status for job in [sweep, *jobs]} == {"FINISHED"}
    assert {job.info.run_id for job in jobs} == set(trials(sweep)) and len(jobs) == count
    for metric in ("train/loss", "val/accuracy", "lr"):
        assert [workspace.logged(job, metric) for job in jobs] == [list(range(1, epochs + 1))] * count
    numbers = {job.info.run_id: job.data.metrics["val/loss"] for job in jobs}
    assert {row["run_id"]: float(row["val/loss"]) for row in rows(workspace, sweep)} == numbers
    assert "Traceback" not in output and "locked" not in output


def add_images(workspace: Workspace, count: int) -> None:
    """Add `count` random images of ants and as many of bees, for data=image_folder."""
    random = np.random.default_rng(0)
    for name in ("ant", "bee"):
        path = workspace.root / "images" / name
        path.mkdir(parents=True)
        for number in range(count):
            Image.fromarray(random.integers(0, 256, (20, 30, 3), np.uint8)).save(path / f"{number}.png")


def folder(output: str) -> str:
    """Return the folder of the sweep."""
    (name,) = re.findall(r"^Saved the comparison to (\S+) and", output, re.MULTILINE)
    return name


def params_lines(output: str) -> dict[str, str]:
    """Return the lines, by key, that a sweep without git says to set in params.yaml."""
    (lines,) = re.findall(r"^  Set in params\.yaml:\n((?:    \w+: .*\n)+)  Then type: dvc repro$", output, re.MULTILINE)
    return dict(line.strip().split(": ", 1) for line in lines.splitlines())


def set_params(workspace: Workspace, lines: dict[str, str]) -> None:
    """Edit params.yaml as a user would: replace the line of each key."""
    text = workspace.read("params.yaml")
    for key, value in lines.items():
        (old,) = re.findall(rf"^{key}:.*$", text, re.MULTILINE)
        text = text.replace(old, f"{key}: {value}")
    workspace.write("params.yaml", text)
