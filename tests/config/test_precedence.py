"""Command line > params.yaml > experiment > the files of the groups; and every option composes with every other."""

from itertools import cycle, islice
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cifar_pipeline.config.compose import NON_RESULT_GROUPS, NON_RESULT_KEYS, STAGES, recorded_config
from cifar_pipeline.config.params import NON_PARAM_GROUPS
from cifar_pipeline.config.schema import validate
from configure import configure
from helpers.config_project import ROOT, Project, options_of

CONF = ROOT / "conf"
# The groups without `experiment`, which chooses among these, and those that only `-m` reads.
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in NON_PARAM_GROUPS)
OPTIONS = {group: options_of(group) for group in [*GROUPS, "experiment"]}


@pytest.fixture
def recipe(project: Project) -> Project:
    """An experiment whose values differ from every default: adam, and 3 epochs."""
    text = "# @package _global_\ndefaults:\n  - tutorial\n  - override /optimizer: adam\n  - _self_\n"
    project.write("conf/experiment/recipe.yaml", text + "trainer:\n  max_epochs: 3\n")
    project.edit("params.yaml", "experiment: tutorial", "experiment: recipe")
    return project


def test_experiment_beats_the_files_of_the_groups(recipe: Project) -> None:
    recipe.edit("conf/experiment/recipe.yaml", "max_epochs: 3\n", "max_epochs: 3\noptimizer:\n  lr: 0.03\n")
    config = recipe.compose()
    assert config.trainer.max_epochs == 3
    assert config.optimizer._target_ == "torch.optim.Adam"
    assert config.optimizer.lr == 0.03


def test_a_key_that_no_experiment_sets_comes_from_the_files_of_the_groups(recipe: Project) -> None:
    recipe.edit("conf/optimizer/adam.yaml", "eps: 1.0e-8", "eps: 1.0e-7")
    assert recipe.compose().optimizer.eps == 1e-7


def test_params_beats_the_experiment(recipe: Project) -> None:
    recipe.edit("params.yaml", "optimizer: null", "optimizer: rmsprop")
    recipe.edit("params.yaml", "overrides: {}", "overrides: {trainer: {max_epochs: 4}, optimizer: {lr: 0.04}}")
    config = recipe.compose()
    assert (config.trainer.max_epochs, config.optimizer.lr) == (4, 0.04)
    assert config.optimizer._target_ == "torch.optim.RMSprop"


def test_several_options_of_a_group_are_chosen_in_params_an_experiment_or_on_the_command_line(recipe: Project) -> None:
    assert (recipe.compose().callbacks, recipe.compose().metrics, recipe.compose().logger) == ({}, {}, {})
    recipe.edit("conf/experiment/recipe.yaml", "  - _self_\n", "  - override /callbacks: [rich_summary]\n  - _self_\n")
    assert list(recipe.compose().callbacks) == ["rich_summary"]
    recipe.edit("params.yaml", "callbacks: null", "callbacks: [early_stopping, lr_monitor]")
    recipe.edit("params.yaml", "metrics: null", "metrics: f1_macro")
    recipe.edit("params.yaml", "overrides: {}", "overrides: {callbacks: {early_stopping: {patience: 7}}}")
    config = recipe.compose()
    assert list(config.callbacks) == ["early_stopping", "lr_monitor"] and list(config.metrics) == ["f1_macro"]
    assert config.callbacks.early_stopping.patience == 7
    assert list(recipe.compose("callbacks=[early_stopping]").callbacks) == ["early_stopping"]
    recipe.edit("params.yaml", "overrides: {callbacks: {early_stopping: {patience: 7}}}", "overrides: {}")
    assert list(recipe.compose("callbacks=[]", "metrics=[auroc,f1_macro]").metrics) == ["auroc", "f1_macro"]
    assert recipe.compose("callbacks=[]").callbacks == {}
    other = recipe.compose("monitor=val/loss", "mode=min", "callbacks=early_stopping")
    assert (other.callbacks.early_stopping.monitor, other.callbacks.early_stopping.mode) == ("val/loss", "min")


def test_command_line_beats_params(recipe: Project) -> None:
    recipe.edit("params.yaml", "optimizer: null", "optimizer: rmsprop")
    recipe.edit("params.yaml", "seed: 0", "seed: 5")
    recipe.edit("params.yaml", "overrides: {}", "overrides: {trainer: {max_epochs: 4}, optimizer: {lr: 0.04}}")
    assert recipe.compose().seed == 5
    config = recipe.compose("optimizer=adamw", "trainer.max_epochs=6", "optimizer.lr=0.06", "seed=6")
    assert (config.trainer.max_epochs, config.optimizer.lr, config.seed) == (6, 0.06, 6)
    assert config.optimizer._target_ == "torch.optim.AdamW"


def test_command_line_beats_the_experiment_and_the_files(recipe: Project) -> None:
    config = recipe.compose("trainer.max_epochs=6", "optimizer.eps=0.1")
    assert (config.trainer.max_epochs, config.optimizer.eps) == (6, 0.1)


@pytest.mark.parametrize("named", ["tutorial", "null"])
def test_experiment_of_the_command_line_beats_that_of_params(project: Project, named: str) -> None:
    project.edit("params.yaml", "experiment: tutorial", f"experiment: {named}")
    assert project.compose().trainer.limit_train_batches is None
    assert project.compose("experiment=debug").trainer.limit_train_batches == 8


def test_params_choice_outlives_another_experiment_on_the_command_line(recipe: Project) -> None:
    recipe.edit("params.yaml", "optimizer: null", "optimizer: rmsprop")
    assert recipe.compose("experiment=debug").optimizer._target_ == "torch.optim.RMSprop"


def test_numbers_in_params_are_read_as_those_in_conf(project: Project) -> None:
    project.edit("params.yaml", "overrides: {}", "overrides: {optimizer: {lr: 1e-3}}")
    assert project.compose().optimizer.lr == 0.001


@pytest.mark.parametrize("group", ["experiment", "evaluation", "runtime", "data", "registry", "predict", "serve"])
def test_every_option_composes_and_is_allowed(project: Project, group: str) -> None:
    for option in OPTIONS[group]:
        validate(project.compose(f"{group}={option}"))


FREE = ("optimizer", "loss", "scheduler")
EACH_ONCE = list(islice(zip(*(cycle(OPTIONS[group]) for group in FREE), strict=False), max(map(len, OPTIONS.values()))))
EACH_PAIR = [
    (optimizer, loss, OPTIONS["scheduler"][(i + j) % len(OPTIONS["scheduler"])])
    for i, optimizer in enumerate(OPTIONS["optimizer"])
    for j, loss in enumerate(OPTIONS["loss"])
]


@pytest.mark.parametrize(
    "combinations",
    [pytest.param(EACH_ONCE, id="each once"), pytest.param(EACH_PAIR, id="each pair", marks=pytest.mark.long)],
)
def test_optimizers_losses_and_schedulers_compose_with_each_other(
    project: Project, combinations: list[tuple[str, ...]]
) -> None:
    """An option's values do not depend on the other options."""
    seen: dict[str, object] = {}
    for options in combinations:
        chosen = dict(zip(FREE, options, strict=True))
        config = project.compose(*(f"{group}={option}" for group, option in chosen.items()))
        validate(config)
        for group, option in chosen.items():
            assert seen.setdefault(f"{group}={option}", config[group]) == config[group]
    assert len(seen) == sum(len(OPTIONS[group]) for group in FREE)


def test_every_file_of_conf_starts_with_a_comment() -> None:
    for path in CONF.rglob("*.yaml"):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package")]
        assert lines[0].startswith("# ") and len(lines[0]) > len("# A short text."), path


def test_composed_file_has_the_composed_values_and_nothing_about_the_machine(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR10_SOURCE", "/somewhere/else")
    assert project.start(configure, "runtime.threads=7", "rerun=true", "trainer=ddp", "trainer.devices=7").code == 0
    text = (project.folder / "composed.yaml").read_text()
    composed = OmegaConf.create(text)
    assert list(composed) == list(STAGES)
    assert {key for section in composed.values() for key in section} == {
        *GROUPS,
        "seed",
        "monitor",
        "mode",
        "versions",
    } - set(NON_RESULT_GROUPS)
    assert composed == OmegaConf.create(recorded_config(project.compose()))
    assert not {f"trainer.{key}" for key in composed.train.trainer} & set(NON_RESULT_KEYS)
    for path in (str(project.folder), str(ROOT), "/somewhere/else", str(Path.home())):
        assert path not in text


def test_composing_twice_writes_the_same_bytes(project: Project) -> None:
    project.start(configure)
    before = (project.folder / "composed.yaml").read_bytes()
    project.start(configure, "runtime.accelerator=cpu")
    assert (project.folder / "composed.yaml").read_bytes() == before
