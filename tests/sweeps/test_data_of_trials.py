"""Trials may differ in their data: each opens the dataset with its own values of `data`, which is made once."""

import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from mlflow.entities import Run
from sweep_runs import FOLDS, add_images, children, in_order, scenario_folds, the_sweep, trained

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.stages.train import train
from cifar_pipeline.sweeps.datasets import _prune, processed_cache_dir
from cifar_pipeline.utils.atomic import claim_tmp_path
from helpers.config_project import Project
from helpers.parameters import some_of
from helpers.source_tree import ROOT
from helpers.workspace import Workspace

KILL_DRIVER = str(ROOT / "tests" / "crash_recovery" / "kill_driver.py")
MADE = re.compile(r"^\[(\d+)\] Made the data of this trial: (.*), in (\S+)$", re.MULTILINE)


def cached(workspace: Workspace) -> list[Path]:
    folder = workspace.root / ".cache" / "processed"
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def dataset_hash(run: Run) -> str:
    (entry,) = run.inputs.dataset_inputs
    return str(entry.dataset.digest)


def test_each_fold_is_made_once_and_is_the_data_of_its_trials(outcome):
    swept = outcome(scenario_folds)
    assert sorted(trained(swept.output)) == [0, 1, 2, 3, 4, 5]
    made = MADE.findall(swept.output)
    assert {name for _, _, name in made} == {f".cache/processed/{path.name}" for path in cached(swept.workspace)}
    assert len(made) == len(cached(swept.workspace)) == 3
    runs = in_order(swept.workspace, the_sweep(swept.workspace))
    hashes = [dataset_hash(run) for run in runs]
    assert hashes[0::2] == hashes[1::2] and len(set(hashes)) == 3
    assert [run.data.params["data.fold"] for run in runs] == ["0", "0", "1", "1", "2", "2"]
    assert "[0] Data:   digits, fold 0 of 3, 958 training images, 480 for validation" in swept.output


def test_the_folds_part_the_training_images(outcome):
    workspace = outcome(scenario_folds).workspace
    pipeline = Dataset.open(workspace.root / "data" / "processed")
    everything = sorted(image.tobytes() for split in ("train", "val") for image in pipeline.split(split)[0])
    folds = [Dataset.open(path) for path in cached(workspace)]
    assert sorted(image.tobytes() for fold in folds for image in fold.split("val")[0]) == everything
    for fold in folds:
        assert sorted(image.tobytes() for split in ("train", "val") for image in fold.split(split)[0]) == everything
        assert np.array_equal(fold.split("test")[0], pipeline.split("test")[0])


def test_typed_again_nothing_is_made_or_trained_again(outcome):
    swept = outcome(scenario_folds)
    assert not trained(swept.stricter) and not MADE.search(swept.stricter)
    assert swept.stricter.count("finished before") == 6
    assert len(children(swept.workspace, the_sweep(swept.workspace))) == 6


def scenario_parallel_folds(workspace: Workspace) -> tuple[Workspace, str]:
    """Two processes, which need each of three datasets twice."""
    return workspace, workspace.train(*FOLDS, "launcher=joblib")


@pytest.mark.long
def test_parallel_trials_make_each_fold_once(outcome):
    workspace, output = outcome(scenario_parallel_folds)
    assert sorted(trained(output)) == [0, 1, 2, 3, 4, 5]
    assert len(MADE.findall(output)) == len(cached(workspace)) == 3


def scenario_killed_making(workspace: Workspace) -> tuple[Workspace, list[Path], list[Run], str]:
    """Kill the sweep in the middle of its second dataset, of whose six arrays two are written."""
    sweep = ("-m", "data.split_seed=1,2")
    workspace.run("python", KILL_DRIVER, "array", "8", "src/train.py", *sweep, code=-signal.SIGKILL)
    return workspace, cached(workspace), workspace.runs(), workspace.train(*sweep)


@pytest.mark.long
def test_a_dataset_that_was_being_made_is_made_again(outcome):
    workspace, left, runs_left, again = outcome(scenario_killed_making)
    assert len(left) == 1 and [run.info.status for run in runs_left] == ["RUNNING", "FINISHED"]
    assert "[0] finished before" in again and trained(again) == [1]
    assert [number for number, *_ in MADE.findall(again)] == ["1"]
    assert {run.info.status for run in workspace.runs()} == {"FINISHED"} and len(workspace.runs()) == 3
    for path in cached(workspace):
        Dataset.open(path).verify()
    assert not [path for path in processed_dir(workspace).iterdir() if ".part" in path.name]


def processed_dir(workspace: Workspace) -> Path:
    return workspace.root / ".cache" / "processed"


def scenario_sources(workspace: Workspace) -> tuple[Workspace, str]:
    """A source that data/raw does not have, one that cannot be fetched, and the pipeline's own."""
    add_images(workspace, 10)
    return workspace, workspace.train("-m", "data=image_folder,cifar10,digits", code=1)


@pytest.mark.long
def test_trials_may_have_other_sources_than_the_pipeline(outcome):
    workspace, output = outcome(scenario_sources)
    runs = in_order(workspace, the_sweep(workspace))
    assert [run.info.status for run in runs] == ["FINISHED", "FAILED", "FINISHED"]
    assert "CIFAR-10 could not be fetched, and a trial uses no fallback: set CIFAR10_SOURCE" in output
    assert [name for name, *_ in MADE.findall(output)] == ["0"]
    assert len({dataset_hash(run) for run in runs if run.info.status == "FINISHED"}) == 2
    assert [path.name for path in (workspace.root / ".cache" / "raw").glob("[!.]*")] == ["image_folder"]
    assert "digits" in runs[2].data.tags["dataset"]


def scenario_few_kept(workspace: Workspace) -> tuple[Workspace, str]:
    return workspace, workspace.train("-m", "data.split_seed=1,2,3,4", "runtime.max_cached_datasets=2")


@pytest.mark.long
def test_the_oldest_datasets_are_removed(outcome):
    workspace, output = outcome(scenario_few_kept)
    assert [f".cache/processed/{path.name}" for path in cached(workspace)] == sorted(
        name for *_, name in MADE.findall(output)[2:]
    )


def test_a_dataset_in_use_is_not_removed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(["newest", "unused", "used"]):
        path = processed_cache_dir() / name / "dataset.json"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (time.time() - age, time.time() - age))
    folder = processed_cache_dir()
    with claim_tmp_path(folder / "used", folder):
        _prune(1)
        assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == ["newest", "used"]
    _prune(1)
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == ["newest"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    some_of(
        [
            (("data.fold=0,5",), "data.fold=5 is out of range: the folds of data.folds=5 are numbered from 0 to 4."),
            (("data.fold=0", "data.folds=3,200"), "data.folds=200 is more than the 139 training images of 8: set"),
            (("data.val_fraction=0.1,1.5",), "data.val_fraction=1.5 is not allowed; it must be a number"),
            (("data.fold=0,x",), "data.fold=x is not allowed; it must be a whole number of at least 0, or null"),
        ],
        0,
        2,
    ),
)
def test_data_that_cannot_be_split_are_refused_before_any_trial(never_swept, inside, overrides, message):
    inside(never_swept)
    ended = Project(never_swept.root).start(train, "-m", *overrides)
    assert ended.code == 2 and message in ended.err and "Trial 1" not in ended.err
    assert not never_swept.runs()


def scenario_damaged(workspace: Workspace) -> tuple[Workspace, str]:
    sweep = ("-m", "data.split_seed=1", "seed=0,1")
    workspace.train(*sweep)
    (path,) = cached(workspace)
    with (path / "train" / "images.npy").open("r+b") as file:
        file.seek(5000)
        file.write(b"damage")
    return workspace, workspace.train(*sweep, "trainer.max_epochs=1")


@pytest.mark.long
def test_a_damaged_dataset_is_made_again(outcome):
    workspace, output = outcome(scenario_damaged)
    assert "A cached dataset is damaged and is made again" in output and len(MADE.findall(output)) == 1
    (path,) = cached(workspace)
    Dataset.open(path).verify()
