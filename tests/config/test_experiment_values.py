"""An option other than the experiment's is refused in a group whose values the experiment sets."""

import shutil
from functools import partial
from pathlib import Path

import pytest
from omegaconf import DictConfig

from cifar_pipeline.cli.entrypoint import run_stage
from cifar_pipeline.config.compose import output_root
from cifar_pipeline.config.schema import validate
from cifar_pipeline.sweeps.job import isolate_failures
from cifar_pipeline.utils.errors import UserError
from configure import configure
from helpers.config_project import FAST, Project, started

MESSAGE = (
    "optimizer=adam does not fit experiment=fast, which sets optimizer.lr and optimizer.momentum for optimizer=muon; "
    "choose another experiment, such as tutorial, or keep optimizer=muon."
)


PARENT = """# @package _global_
defaults:
  - tutorial
  - override /loss: label_smoothing
  - _self_
loss:
  label_smoothing: 0.2
"""
CHILD = """# @package _global_
defaults:
  - parent
  - _self_
trainer:
  max_epochs: 40
"""


@pytest.fixture(autouse=True)
def recipes(project: Project) -> None:
    for name, text in (("fast", FAST), ("parent", PARENT), ("child", CHILD)):
        project.write(f"conf/experiment/{name}.yaml", text)


def write_seed(config: DictConfig) -> None:
    output_root().mkdir(parents=True, exist_ok=True)
    (output_root() / "seed").write_text(str(config.seed))


def test_another_option_is_refused_on_the_command_line(project: Project) -> None:
    project.start(configure, "experiment=fast", "optimizer=adam").assert_refused(MESSAGE)
    assert not (project.folder / "composed.yaml").exists()


@pytest.mark.parametrize("arguments", [("experiment=fast",), ("experiment=fast", "optimizer.lr=0.1")])
def test_another_option_is_refused_in_params(project: Project, arguments: tuple[str, ...]) -> None:
    project.edit("params.yaml", "optimizer: null", "optimizer: adam")
    project.start(configure, *arguments).assert_refused(MESSAGE)
    with pytest.raises(UserError) as error:
        project.compose(*arguments)
    assert str(error.value) == MESSAGE


def test_another_option_fails_its_trial_of_a_sweep(
    project: Project, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty_database, project.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project.folder / 'mlflow.db'}")
    arguments = ["-m", "experiment=fast", "optimizer=muon,adam", "hydra.sweep.dir=multirun/x"]
    ended = started(write_seed, partial(run_stage, decorator=isolate_failures), arguments)
    assert f"[1] {MESSAGE}" in ended.err and "Traceback" not in ended.err
    assert [path.parent.name for path in Path("multirun/x").rglob("seed")] == ["0"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("experiment=fast", "optimizer=muon", "scheduler=one_cycle"),
        ("experiment=fast", "augmentation=flip_crop", "loss=mse", "model=airbench"),
        # The options of `trainer` and of `data` have the same keys.
        ("experiment=fast", "trainer=debug", "data=digits"),
        # Its parent sets loss.label_smoothing, but nothing for the optimizer.
        ("experiment=child", "optimizer=adam"),
        ("experiment=null", "optimizer=adam"),
        ("experiment=tutorial.yaml", "optimizer=adam"),
    ],
)
def test_options_that_fit_the_experiments_values_are_accepted(project: Project, arguments: tuple[str, ...]) -> None:
    if arguments[0] == "experiment=null":
        project.edit("params.yaml", "experiment: tutorial", "experiment: null")
        arguments = arguments[1:]
    validate(project.compose(*arguments))


def test_a_parents_values_are_refused_too(project: Project) -> None:
    project.start(configure, "experiment=child", "loss=cross_entropy").assert_refused(
        "loss=cross_entropy does not fit experiment=child, which sets loss.label_smoothing"
    )


def test_values_for_a_group_whose_option_the_experiment_leaves_open_are_accepted(project: Project) -> None:
    project.write("conf/experiment/open.yaml", "# @package _global_\noptimizer:\n  lr: 0.01\n")
    for option in ("sgd", "adam"):
        assert project.compose("experiment=open", f"optimizer={option}").optimizer.lr == 0.01
