"""Hydra's own settings work, or are refused in one sentence before any work."""

from collections.abc import Callable, Iterator

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, flag_override

from cifar_pipeline.config.compose import compose_with_hydra
from cifar_pipeline.config.validation import check_settings, parse_arguments
from cifar_pipeline.sweeps.callback import check_sweep, reject_swept_ranking
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import Project
from helpers.dir_snapshot import content_of
from helpers.source_tree import PUBLISHED

MULTIRUN = ("-m", "seed=1,2")

# Arguments of train.py with which nothing starts, and fragments of the message.
STARTS = {
    "hydra.job.chdir=true": "hydra.job.chdir=true cannot be used: conf/, data/ and models/ are read in the project's",
    "-m seed=1,2 hydra.job.chdir=true": "hydra.job.chdir=true cannot be used",
    # Hydra would replace conf/config.yaml.
    "hydra.output_subdir=conf": "hydra.output_subdir=conf cannot be used: `--cfg job` prints",
    "-m seed=1,2 hydra.sweep.dir=conf": "hydra.sweep.dir=conf is a folder of the project",
    "-m seed=1,2 hydra/job_logging=stdout": "hydra/job_logging cannot be set: -v, -q and the environment",
    "-m seed=1,2 +hydra.callbacks.mine._target_=nope.X": "hydra.callbacks.mine._target_=nope.X cannot be imported",
    "-m launcher=joblib,submitit_local": "launcher: a sweep has one option of it",
}


def train(config: DictConfig) -> None:
    """Never called."""
    raise AssertionError


@pytest.mark.parametrize("command", STARTS)
def test_nothing_starts_with_a_setting_that_breaks_it(project: Project, command: str) -> None:
    before = content_of(project.folder)
    project.start(train, *command.split()).assert_refused(STARTS[command])
    assert content_of(project.folder) == before


@pytest.mark.parametrize(
    ("path", "old", "new", "fragment"),
    [
        ("conf/config.yaml", "chdir: false", "chdir: true", "hydra.job.chdir=true cannot be used"),
        ("params.yaml", "overrides: {}", "overrides: {hydra: {job: {num: 3}}}", "hydra.job.num cannot be set"),
    ],
)
def test_a_setting_in_a_file_is_refused_as_well(project: Project, path: str, old: str, new: str, fragment: str) -> None:
    project.edit(path, old, new)
    project.start(train).assert_refused(fragment)


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PUBLISHED)


# Arguments that are refused before the configuration is composed, and fragments of the message.
ARGUMENTS = {
    "hydra/hydra_logging=default": "hydra/hydra_logging cannot be set: -v, -q and",
    "hydra.job_logging.handlers.console.class=a.B": "hydra.job_logging.handlers.console.class cannot be set: -v",
    "+hydra.job.env_set.MKL_CBWR=COMPATIBLE": "hydra.job.env_set.MKL_CBWR cannot be set: set environment variables",
    "-m hydra.job.id=3": "hydra.job.id cannot be set: Hydra sets it itself",
    "hydra.runtime.cwd=/tmp": "hydra.runtime.cwd cannot be set: Hydra sets it itself",
    "+hydra.foo=1": "hydra.foo cannot be set: Hydra has no such setting",
    "hydra/env=default": "hydra/env cannot be set",
    "~hydra.callbacks.sweep": "hydra.callbacks.sweep cannot be set: this callback opens each sweep in MLflow",
    "-m hydra.callbacks.sweep=null": "hydra.callbacks.sweep cannot be set",
    "-m hydra.launcher._target_=nope.X": "hydra.launcher._target_ cannot be set: choose launcher=joblib",
    "hydra.searchpath=[/nope]": "hydra.searchpath: there is no folder /nope",
    "-m seed=1,2 hydra.mode=RUN": "--multirun and hydra.mode=RUN exclude each other",
    "hydra.sweep.dir=mine": "hydra.sweep.dir=mine is for sweeps only: add -m",
    "hydra/launcher=joblib": "hydra/launcher=joblib is for sweeps only: add -m",
    "--config-dir /tmp": "--config-dir cannot be used: put the options into conf/",
    "--config-name other": "--config-name cannot be used: the configuration is conf/config.yaml",
    "--experimental-rerun x.pickle": "--experimental-rerun cannot be used: type the command of the run again",
    "--package optimizer": "--package and --resolve say what --cfg prints: add --cfg job",
    "optimizer=adam -m seed=1,2 rerun=true": "seed=1,2 rerun=true: write all overrides together",
    "--sweep seed=1,2": "--sweep is no option of this command",
    "--run -m seed=1,2": "--run and --multirun exclude each other",
    "-sc install=tcsh": "There is no completion for tcsh; choose one of bash, fish, zsh",
}


@pytest.mark.parametrize("command", ARGUMENTS)
def test_arguments_that_cannot_work_are_refused(root: None, command: str) -> None:
    with pytest.raises(UserError) as error:
        parse_arguments(command.split())
    assert ARGUMENTS[command] in str(error.value) and str(error.value).endswith(".")


@pytest.mark.parametrize(
    "command",
    [
        "hydra.job.chdir=false hydra.run.dir=. hydra.output_subdir=null hydra.verbose=false hydra.mode=RUN",
        "hydra/launcher=joblib --cfg hydra --package hydra.launcher",
        "-m launcher=joblib hydra.launcher.n_jobs=2 hydra.sweep.dir=mine hydra.sweep.subdir=t-${hydra.job.num}",
        "hydra.mode=MULTIRUN hydra.job.name=mine +hydra.callbacks.x._target_=hydra.experimental.callback.Callback",
        "--config-dir /tmp --help",
    ],
)
def test_arguments_that_work_are_not_refused(root: None, command: str) -> None:
    assert parse_arguments(command.split())[1] == ("--help" in command)


@pytest.fixture(scope="module")
def composed() -> Iterator[Callable[[str], DictConfig]]:
    """Return a function that returns a copy of the composed configuration with a launcher."""
    known: dict[str, DictConfig] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PUBLISHED)

        def copied(launcher: str) -> DictConfig:
            if launcher not in known:
                known[launcher] = compose_with_hydra([f"hydra/launcher={launcher}"])
            return known[launcher].copy()

        yield copied


# A launcher, a setting, and fragments of the message.
SETTINGS = {
    ("basic", "hydra.run.dir=elsewhere"): "hydra.run.dir=elsewhere cannot be used: a single run writes models/",
    ("basic", "hydra.verbose=[a,b]"): "hydra.verbose=[a, b] cannot be used: the option -v shows",
    ("basic", "hydra.job.name=a/b"): "hydra.job.name=a/b cannot be used: it names each trial's log file",
    ("basic", "hydra.sweep.dir="): "hydra.sweep.dir='' is a folder of the project",
    ("basic", "hydra.sweep.dir=params.yaml/x"): "params.yaml is a file",
    ("basic", "hydra.sweep.subdir=same"): "hydra.sweep.subdir=same can be the same for several trials",
    ("basic", "hydra.sweep.subdir=../${hydra.job.num}"): "is outside of the sweep's folder",
    ("basic", "hydra.sweeper.max_batch_size=0"): "hydra.sweeper.max_batch_size=0 is not allowed",
    ("basic", "hydra.sweeper.foo=1"): "hydra.sweeper.foo: unknown key of hydra/sweeper=basic; allowed are max_batch",
    ("basic", "hydra.launcher.n_jobs=2"): "hydra.launcher.n_jobs: unknown key of hydra/launcher=basic; it has no keys",
    (
        "joblib",
        "hydra.launcher.foo=1",
    ): "unknown key of hydra/launcher=joblib; allowed are n_jobs, verbose, batch_size.",
    ("joblib", "hydra.launcher.n_jobs=0"): "hydra.launcher.n_jobs=0 is not allowed; it is a number of trials at a time",
    ("joblib", "hydra.launcher.batch_size=0"): "hydra.launcher.batch_size=0 is not allowed; it must be auto or a whole",
    ("joblib", "hydra.launcher.backend=threading"): "hydra.launcher.backend=threading does not suit trials",
    ("joblib", "hydra.launcher.timeout=9"): "hydra.launcher.timeout=9.0 does not suit trials",
    ("submitit_local", "hydra.launcher.tasks_per_node=2"): "tasks_per_node=2 does not suit trials: a trial is one",
    ("submitit_local", "hydra.launcher.timeout_min=0"): "hydra.launcher.timeout_min=0 is not allowed; it must be at",
    ("submitit_local", "hydra.launcher.gpus_per_node=1"): "the sweep assigns GPUs by runtime.gpus_per_trial",
}


@pytest.mark.parametrize(("launcher", "setting"), SETTINGS)
def test_a_sweep_with_a_setting_that_breaks_it_is_refused(
    composed: Callable[[str], DictConfig], launcher: str, setting: str
) -> None:
    config = composed(launcher)
    override = OverridesParser.create().parse_override(setting)
    with flag_override(config, ["readonly", "struct"], False):
        OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
    with pytest.raises(UserError) as error:
        check_settings(config.hydra)
        check_sweep(config)
    assert SETTINGS[launcher, setting] in str(error.value) and str(error.value).endswith(".")


@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_a_sweep_with_the_published_settings_is_not_refused(
    composed: Callable[[str], DictConfig], launcher: str
) -> None:
    config = composed(launcher)
    check_settings(config.hydra)
    check_sweep(config)


@pytest.mark.parametrize("group", ["sweep", "launcher", "sampler", "pruner"])
def test_a_sweep_has_one_option_of_what_belongs_to_all_trials(group: str) -> None:
    with pytest.raises(UserError, match=f"{group}: a sweep has one option of it"):
        reject_swept_ranking([group])
