"""What is fixed in a sweep, what is swept, and how a trial is written down."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, flag_override

from cifar_pipeline.config.params import register_params
from cifar_pipeline.sweeps.callback import num_trials, split_fixed_and_swept
from cifar_pipeline.sweeps.summary import dvc_override
from cifar_pipeline.tracking.trial import Trial, parse_overrides
from helpers.config_project import Project


def multirun(project: Project, overrides: list[str]) -> DictConfig:
    """As the callback sees a multirun's configuration, which knows of what is swept only as text."""
    register_params()
    of_hydra = [text for text in overrides if text.startswith(("hydra", "sweep="))]
    with initialize_config_dir(str(project.folder / "conf"), version_base="1.3"):
        config = compose("config", overrides=of_hydra, return_hydra_config=True)
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
        # The command line beats the file, as everywhere.
        (["sweep=seeds", "seed=7"], ["sweep=seeds", "seed=7"], {}),
        (["sweep=seeds", "seed=7,8"], ["sweep=seeds"], {"seed": "7,8"}),
        (["seed=0,1", "hydra/launcher=joblib"], [], {"seed": "0,1"}),
    ],
)
def test_what_is_swept_is_told_from_what_is_fixed(project, overrides, fixed, swept):
    found_fixed, found_swept = split_fixed_and_swept(multirun(project, overrides))
    assert (sorted(found_fixed), found_swept) == (sorted(fixed), swept)


@pytest.mark.parametrize(
    ("overrides", "trials"),
    [
        (["optimizer=sgd,adam", "seed=3"], 2),
        (["optimizer=sgd,adam", "seed=range(3)"], 6),
        (["sweep=seeds"], 3),
        (["sweep=seeds", "seed=7"], 1),
        # What a search draws from, or a pattern, has no number.
        (["optimizer.lr=tag(log, interval(0.1, 1))"], 0),
        (["optimizer=glob(*)"], 0),
        (["sweep=search", "hydra.sweeper.n_trials=7"], 7),
    ],
)
def test_how_many_trials_there_will_be_is_known_beforehand(project, overrides, trials):
    assert num_trials(multirun(project, overrides)) == trials


def test_a_trial_says_which_of_how_many_it_is():
    assert Trial("parent", 3, (), (), 12).place == "trial 4 of 12"
    assert Trial("parent", 3, (), ()).place == "trial 4"


def test_a_trial_is_called_by_what_is_swept():
    overrides = ("optimizer=adam", "++optimizer.lr=0.01", "augmentation=flip_crop", "seed=1", "trainer.max_epochs=2")
    point = Trial("parent", 3, overrides, ("optimizer", "optimizer.lr", "augmentation", "seed"))
    assert point.label == "optimizer=adam optimizer.lr=0.01 augmentation=flip_crop seed=1"
    # Optimizer, loss and seed stand in every run's name.
    assert point.beside == ["optimizer.lr=0.01", "augmentation=flip_crop"]
    assert Trial("parent", 0, ("seed=1",), ()).label == ""


def test_settings_are_read_from_overrides():
    assert parse_overrides(["a=1", "+b.c=x=y", "~d", "++a=2", "e="]) == {"a": "2", "b.c": "x=y", "e": ""}


def test_a_value_is_set_where_params_has_its_place(project):
    assert dvc_override("optimizer", "adam") == "optimizer=adam"
    assert dvc_override("seed", "3") == "seed=3"
    assert dvc_override("optimizer.lr", "0.01") == "++overrides.optimizer.lr=0.01"
    assert dvc_override("optimizer.betas", "[0.9,0.99]") == "++overrides.optimizer.betas=[0.9,0.99]"
