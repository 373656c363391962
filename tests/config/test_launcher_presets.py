"""`launcher=NAME` chooses what runs a sweep's trials; a missing package or service is refused before any work."""

from collections.abc import Callable

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigNode, ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from cifar_pipeline.config.compose import recorded_config
from cifar_pipeline.config.local_settings import register_configs
from cifar_pipeline.stages.train import train
from cifar_pipeline.sweeps import callback
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import Project, options_of

PRESETS = {"joblib": "joblib", "submitit_local": "submitit_local", "slurm": "submitit_slurm", "ray": "ray"}
# The config of hydra-ray-launcher, which need not be installed.
RAY_LAUNCHER = {"_target_": "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher"} | {
    "ray": {"init": {"address": None}, "remote": {}}
}
SWEEP = ("-m", "seed=0,1")
PIP_PINNED = "`pip install --constraint constraints.txt --editable '.[launchers]'`"


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bool], None]:
    """Return a function that makes one of Hydra's launchers appear installed or missing."""
    Plugins.instance()  # registers the installed plugins once
    launchers = ConfigStore.instance().repo["hydra"]["launcher"]

    def set_installed(name: str, installed: bool) -> None:
        if not installed:
            monkeypatch.delitem(launchers, f"{name}.yaml", raising=False)
        elif f"{name}.yaml" not in launchers:
            node = ConfigNode(
                name=name, node=OmegaConf.create(RAY_LAUNCHER), group="hydra/launcher", package=None, provider=None
            )
            monkeypatch.setitem(launchers, f"{name}.yaml", node)

    return set_installed


def test_every_launcher_of_conf_is_tested_here() -> None:
    assert set(options_of("launcher")) == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_each_launcher_composes_and_changes_no_result(project: Project, plugins, name: str) -> None:
    plugins(PRESETS[name], True)
    register_configs()
    with initialize_config_dir(str(project.folder / "conf"), version_base="1.3"):
        config = compose("config", overrides=[f"launcher={name}"], return_hydra_config=True)
    assert config.hydra.runtime.choices["hydra/launcher"] == PRESETS[name]
    preset = OmegaConf.load(project.folder / "conf" / "launcher" / f"{name}.yaml").hydra.launcher
    assert OmegaConf.merge(config.hydra.launcher, preset) == config.hydra.launcher
    assert recorded_config(project.compose(f"launcher={name}")) == recorded_config(project.compose())


@pytest.mark.parametrize("name", PRESETS)
def test_a_missing_launcher_is_refused_with_the_command_that_installs_it(project: Project, plugins, name: str) -> None:
    plugins(PRESETS[name], False)
    command = "`pip install --editable '.[ray]'`" if name == "ray" else PIP_PINNED
    project.start(train, *SWEEP, f"launcher={name}").assert_refused(f"hydra/launcher={PRESETS[name]}", command)


@pytest.mark.parametrize("choice", ["launcher=joblib", "sweep=lr"])
def test_options_of_a_sweep_are_refused_without_one(project: Project, choice: str) -> None:
    project.start(train, choice).assert_refused(choice, "add -m")


def test_slurm_is_refused_without_sbatch(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    project.start(train, *SWEEP, "launcher=slurm").assert_refused("`sbatch`", "launcher=submitit_local")
    assert not (project.folder / "mlflow.db").exists()


def test_an_unreachable_ray_cluster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    choices = {"choices": {"hydra/launcher": "ray"}}
    config = OmegaConf.create({"hydra": {"runtime": choices, "launcher": {"ray": {"init": {"address": None}}}}})
    callback.check_launcher(config)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9: start it"):
        callback.check_launcher(config)
