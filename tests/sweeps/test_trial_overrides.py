"""Fixed and swept overrides of a sweep, titles and names of trials, and the command that reproduces one."""

from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, flag_override

from cifar_pipeline.config.local_settings import register_configs
from cifar_pipeline.sweeps import summary
from cifar_pipeline.sweeps.callback import num_trials, split_fixed_and_swept
from cifar_pipeline.sweeps.summary import dvc_override, reproduce_command
from cifar_pipeline.tracking.sweeps import TrialRecord
from cifar_pipeline.tracking.trial import Trial, checkpoint_metrics, parse_overrides
from helpers.config_project import Project


def multirun(project: Project, overrides: list[str]) -> DictConfig:
    """Compose the configuration of a multirun as the callback gets it, with swept values as text."""
    register_configs()
    hydra_overrides = [text for text in overrides if text.startswith(("hydra", "sweep="))]
    with initialize_config_dir(str(project.folder / "conf"), version_base="1.3"):
        config = compose("config", overrides=hydra_overrides, return_hydra_config=True)
    task = [text for text in overrides if not text.startswith("hydra")]
    with flag_override(config, ["readonly", "struct"], False):
        config.hydra.overrides.task = task
    return config


@pytest.mark.parametrize(
    ("overrides", "fixed", "swept"),
    [
        (["optimizer=sgd,adam", "seed=3"], ["seed=3"], {"optimizer": "sgd,adam"}),
        (["++optimizer.lr=0.1,0.2"], [], {"optimizer.lr": "0.1,0.2"}),
        (["optimizer.betas=[0.9,0.99]"], ["optimizer.betas=[0.9,0.99]"], {}),
        (["optimizer.betas=[0.9,0.99],[0.8,0.9]"], [], {"optimizer.betas": "[0.9,0.99],[0.8,0.9]"}),
        (["seed=range(3)"], [], {"seed": "range(3)"}),
        (["optimizer.lr=tag(log, interval(0.1, 1))"], [], {"optimizer.lr": "tag(log, interval(0.1, 1))"}),
        (["sweep=seeds"], ["sweep=seeds"], {"seed": "0,1,2"}),
        # The command line takes precedence over the file.
        (["sweep=seeds", "seed=7"], ["sweep=seeds", "seed=7"], {}),
        (["sweep=seeds", "seed=7,8"], ["sweep=seeds"], {"seed": "7,8"}),
        (["seed=0,1", "hydra/launcher=joblib"], [], {"seed": "0,1"}),
        # Interpolations have values in each trial only, and may read secrets.
        (["seed=0,1", "model.name=${oc.env:NOWHERE}"], ["model.name=${oc.env:NOWHERE}"], {"seed": "0,1"}),
    ],
)
def test_overrides_are_split_into_fixed_and_swept(project, overrides, fixed, swept):
    actual_fixed, actual_swept = split_fixed_and_swept(multirun(project, overrides))
    assert (sorted(actual_fixed), actual_swept) == (sorted(fixed), swept)


@pytest.mark.parametrize(
    ("overrides", "trials"),
    [
        (["optimizer=sgd,adam", "seed=3"], 2),
        (["optimizer=sgd,adam", "seed=range(3)"], 6),
        (["sweep=seeds"], 3),
        (["sweep=seeds", "seed=7"], 1),
        # Intervals of a search and patterns cannot be counted.
        (["optimizer.lr=tag(log, interval(0.1, 1))"], 0),
        (["optimizer=glob(*)"], 0),
        (["sweep=search", "hydra.sweeper.n_trials=7"], 7),
    ],
)
def test_trials_are_counted_in_advance(project, overrides, trials):
    assert num_trials(multirun(project, overrides)) == trials


def test_a_title_has_the_number_of_a_trial_and_of_all_trials():
    assert Trial("parent", 3, (), (), 12).title == "Trial 4/12"
    assert Trial("parent", 3, (), ()).title == "Trial 4"


def test_a_trial_is_named_by_its_swept_values():
    overrides = ("optimizer=adam", "++optimizer.lr=0.01", "augmentation=flip_crop", "seed=1", "trainer.max_epochs=2")
    trial = Trial("parent", 3, overrides, ("optimizer", "optimizer.lr", "augmentation", "seed"))
    assert trial.label == "optimizer=adam optimizer.lr=0.01 augmentation=flip_crop seed=1"
    # Every run's name has optimizer, loss and seed.
    assert trial.name_suffixes == ["optimizer.lr=0.01", "augmentation=flip_crop"]
    assert Trial("parent", 0, ("seed=1",), ()).label == ""


def test_overrides_are_parsed_into_keys_and_values():
    assert parse_overrides(["a=1", "+b.c=x=y", "~d", "++a=2", "e="]) == {"a": "2", "b.c": "x=y", "e": ""}


def test_a_dvc_override_sets_a_key_of_params_or_of_its_overrides(project):
    assert dvc_override("optimizer", "adam") == "optimizer=adam"
    assert dvc_override("seed", "3") == "seed=3"
    assert dvc_override("optimizer.lr", "0.01") == "++overrides.optimizer.lr=0.01"
    assert dvc_override("optimizer.betas", "[0.9,0.99]") == "++overrides.optimizer.betas=[0.9,0.99]"


def record(*overrides: str, **tags: str) -> TrialRecord:
    run: Any = SimpleNamespace(data=SimpleNamespace(tags=tags))
    return TrialRecord(0, overrides, run, reused=False)


def test_without_git_the_command_is_lines_for_params_yaml_that_keep_its_other_overrides(project, monkeypatch):
    monkeypatch.setattr(summary, "is_in_repository", lambda: False)
    project.edit("params.yaml", "overrides: {}", "overrides: {trainer: {max_epochs: 7}, optimizer: {lr: 0.1}}")
    trial = record("optimizer=adam", "++optimizer.lr=0.002", "launcher=joblib", threads="2", engine="eager")
    assert (
        reproduce_command(trial)
        == """Set in params.yaml:
  optimizer: adam
  overrides: {trainer: {max_epochs: 7}, optimizer: {lr: 0.002}, runtime: {threads: 2, engine: eager}}
Then type: dvc repro"""
    )


def test_with_git_the_command_is_an_experiment_of_dvc(project, monkeypatch):
    monkeypatch.setattr(summary, "is_in_repository", lambda: True)
    # Resumed on another machine, the training has two numbers of threads, which cannot be reproduced.
    trial = record("optimizer=adam", "optimizer.betas=[0.8,0.9]", threads="2, 8", engine="eager")
    assert reproduce_command(trial) == (
        "dvc exp run -S optimizer=adam -S '++overrides.optimizer.betas=[0.8,0.9]' "
        "-S ++overrides.runtime.threads=auto -S ++overrides.runtime.engine=eager"
    )


@pytest.mark.parametrize(
    ("mode", "checkpoint", "expected"),
    [
        ("max", "best", {"val/x": 0.9, "train/x": 2.0}),  # the first of ties, as Lightning's checkpoint
        ("min", "best", {"val/x": 0.1, "train/x": 1.0}),
        ("max", "last", {"val/x": 0.5, "train/x": 6.0}),  # the last epoch was not validated
    ],
)
def test_the_metrics_of_a_trial_are_those_of_its_checkpoint(mode, checkpoint, expected):
    values = [0.1, 0.9, float("nan"), 0.9, 0.5, None]
    rows = [{"train/x": n} | ({} if x is None else {"val/x": x}) for n, x in enumerate(values, 1)]
    assert checkpoint_metrics(rows, "val/x", mode, checkpoint) == expected


@pytest.mark.parametrize("rows", [[], [{"train/x": 1.0}], [{"val/x": 0.5}, {"val/x": float("inf")}]])
def test_a_trial_whose_last_weights_have_no_value_has_no_metrics(rows):
    assert checkpoint_metrics(rows, "val/x", "max", "last") == {}
