"""All trials of a sweep use the same code, conf/, packages and data; a change makes it another sweep."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from sweep_runs import rows, sweeps, trained, trials

from cifar_pipeline.config import source_files
from cifar_pipeline.config.compose import stage_config
from cifar_pipeline.sweeps import job
from cifar_pipeline.sweeps.job import SweepBasis
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import Project
from helpers.parameters import some_of
from helpers.workspace import Workspace

SWEEP = ("-m", "seed=0,1,2", "loss=slow", "trainer.max_epochs=2")


@dataclass(frozen=True)
class Edited:
    workspace: Workspace
    interrupted: str
    runs_left: list[Run]
    again: str


def scenario_edited(workspace: Workspace) -> Edited:
    """Edit the loss's code while the second of three trials trains; then type the same command again."""
    sweep = workspace.start("python", "src/train.py", *SWEEP)
    sweep.wait_for("[1] epoch 1/2")
    workspace.edit("src/own.py", "super().forward(*inputs)", "super().forward(*inputs) * 2")
    output = sweep.end(code=1)
    runs_left = workspace.runs()
    return Edited(workspace, output, runs_left, workspace.train(*SWEEP))


@pytest.mark.long
def test_no_trial_is_trained_on_code_that_was_edited_after_the_sweep_started(outcome):
    edited = outcome(scenario_edited)
    assert trained(edited.interrupted) == [0, 1]
    assert "own.py was edited while this ran, so nothing was published" in edited.interrupted
    assert "own.py was edited after the sweep started, so its trials would not be comparable" in edited.interrupted
    assert "Traceback" not in edited.interrupted
    assert [run.info.status for run in edited.runs_left] == ["FAILED", "FINISHED", "FAILED", "FAILED"]


@pytest.mark.long
def test_after_the_edit_the_same_command_is_another_sweep_with_only_its_own_trials(outcome):
    edited = outcome(scenario_edited)
    assert trained(edited.again) == [0, 1, 2] and "finished before" not in edited.again
    first, second = sweeps(edited.workspace)
    assert first.data.tags["sweep"] != second.data.tags["sweep"]
    assert not set(trials(first)) & set(trials(second))
    assert {row["run_id"] for row in rows(edited.workspace, second)} == set(trials(second))
    by_seed = {run.data.params["seed"]: run for run in edited.workspace.runs() if run.info.run_id in trials(second)}
    (before,) = [run for run in edited.runs_left if run.info.status == "FINISHED"]
    assert by_seed["0"].data.metrics["train/loss"] != before.data.metrics["train/loss"]


def edit_adam(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.edit("conf/optimizer/adam.yaml", "lr: 0.001", "lr: 0.002")


def write_data(project: Project, content: str, *overrides: str) -> None:
    """Write dataset.json of a dataset with this hash, made with the project's `data` and `overrides`."""
    requested = stage_config(project.compose(*overrides), "preprocess")["data"]
    project.write("data/processed/dataset.json", json.dumps({"hash": content, "requested": requested}))


def other_data(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(project, "two")


def other_torch(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_files, "version", lambda name: "9.9")


def other_precision(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "variables", lambda: {"NVIDIA_TF32_OVERRIDE": "1"})


CHANGES: dict[str, tuple[Callable[[Project, pytest.MonkeyPatch], Any], str]] = {
    "conf/": (edit_adam, "conf/optimizer/adam.yaml was edited after the sweep started"),
    "params.yaml": (lambda project, _: project.edit("params.yaml", "seed: 0", "seed: 1"), "params.yaml was edited"),
    "data": (other_data, "data/processed was changed after the sweep started"),
    "a package": (other_torch, "The version of lightning changed"),
    "a variable": (other_precision, "The environment variable NVIDIA_TF32_OVERRIDE changed"),
}


@pytest.mark.parametrize("change", some_of(CHANGES, 0, 2, 3))
def test_each_change_makes_another_sweep_and_is_an_error_in_this_one(
    project: Project, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    write_data(project, "one")
    basis, (apply, message) = SweepBasis.now(project.compose()), CHANGES[change]
    basis.require_same(project.compose())
    apply(project, monkeypatch)
    assert SweepBasis.now(project.compose()).fingerprint != basis.fingerprint
    with pytest.raises(UserError, match=message):
        basis.require_same(project.compose())


def test_data_processed_with_other_values_is_nothing_that_the_trials_use(project: Project) -> None:
    """They have their own datasets; see test_data_of_trials.py."""
    write_data(project, "one")
    basis = SweepBasis.now(project.compose())
    basis.require_same(project.compose("data.fold=1"))
    write_data(project, "two", "data.val_fraction=0.3")
    basis.require_same(project.compose())
    assert SweepBasis.now(project.compose()).data == "" != basis.data


def test_a_process_with_other_code_trains_no_trial(project: Project) -> None:
    """Such as a launcher's new process, if a file was edited before it started."""
    basis = SweepBasis.now(project.compose())
    old = dataclasses.replace(basis, code=basis.code | {"cifar_pipeline/models/lenet.py": "old hash"})
    with pytest.raises(UserError, match=r"cifar_pipeline/models/lenet.py was edited after the sweep started"):
        old.require_same(project.compose())
    unused = dataclasses.replace(basis, code=basis.code | {"cifar_pipeline/models/airbench.py": "old hash"})
    unused.require_same(project.compose())


def test_changes_that_cannot_affect_a_training_keep_the_sweep(project: Project) -> None:
    basis = SweepBasis.now(project.compose())
    project.edit("conf/evaluation/default.yaml", "bins: 15", "bins: 10")
    project.edit("conf/optimizer/sgd.yaml", "lr: 0.001", "lr: 0.001  # the default")
    basis.require_same(project.compose())
    assert SweepBasis.now(project.compose()).fingerprint == basis.fingerprint
    assert Path("conf/evaluation/default.yaml").as_posix() not in basis.values


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("monitor=val/loss", "This trial has monitor=val/loss and the sweep monitor=val/accuracy"),
        ("mode=min", "This trial has mode=min and the sweep mode=max"),
        ("evaluation=best", r"evaluation\.checkpoint=best and the sweep evaluation\.checkpoint=last"),
    ],
)
def test_a_trial_that_is_ranked_differently_is_an_error(project: Project, override: str, message: str) -> None:
    """Such as one of a sweep over experiments."""
    basis = SweepBasis.now(project.compose())
    assert SweepBasis.now(project.compose(override)).fingerprint != basis.fingerprint
    with pytest.raises(UserError, match=message):
        basis.require_same(project.compose(override))
