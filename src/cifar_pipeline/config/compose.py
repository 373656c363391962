"""The configuration as DVC tracks it: composed from conf/ and params.yaml, less what cannot change a result."""

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from cifar_pipeline.config.choices import CONF, register_choices
from cifar_pipeline.config.code import loaded_sources
from cifar_pipeline.config.environment import FOR_PICTURES, PACKAGES, versions
from cifar_pipeline.config.targets import target_names
from cifar_pipeline.console import Refusal
from cifar_pipeline.files import whole_file
from cifar_pipeline.redaction import redacted_values

# What belongs to the machine, to this one start of a stage, or to what comes after the training.
OUTSIDE = ("machine", "registry", "predict", "serve", "rerun", "pictures")
# Keys within a group that is otherwise decisive: by how many processes a training is done.
OUTSIDE_KEYS = ("trainer.strategy", "trainer.devices", "trainer.num_nodes")


def composed(overrides: list[str] | None = None) -> DictConfig:
    """The configuration that a stage gets when it is started with these overrides on its command line."""
    register_choices()
    if GlobalHydra.instance().is_initialized():  # in a stage that Hydra has started
        return compose("config", overrides=overrides or [])
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return compose("config", overrides=overrides or [])


def decisive(config: DictConfig) -> dict[str, Any]:
    """The values that can change a result, as plain nested dicts, redacted: they are written to files and runs."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    for group, _, key in (name.partition(".") for name in OUTSIDE_KEYS):
        plain[group].pop(key, None)
    return redacted_values({str(key): value for key, value in plain.items() if key not in OUTSIDE})  # type: ignore[no-any-return]


def recorded(config: DictConfig, only: str | None = None) -> dict[str, Any]:
    """What DVC records: the decisive values and the versions of the packages that compute, in each stage or in one."""
    stages = [stage for stage in PACKAGES if only in (None, stage)]
    packages = {}
    for stage in stages:
        imported = loaded_sources().used(stage, stage_targets(config, stage)).packages
        if stage == "preprocess" and "root" in config.data:
            imported |= {FOR_PICTURES}
        packages[stage] = versions(stage, imported)
    return {**decisive(config), "versions": packages}


def stage_targets(config: DictConfig, stage: str) -> list[str]:
    """What the `_target_`s name that are used in a stage: data sources before the training, the others in it."""
    values = decisive(config)
    data = list(target_names(values.pop("data", {})))
    return {"download": data, "preprocess": data, "train": list(target_names(values))}.get(stage, [])


def write_composed(config: DictConfig, path: Path) -> None:
    """Write what DVC records as YAML, for DVC to compare key by key.

    Raises Refusal where the data's folder is not the one that dvc.yaml names: DVC would not see a picture change.
    """
    for key in ("data.root", "data.source.root", "data.fallback.root"):
        root = OmegaConf.select(config, key, default=config.pictures)
        if root != config.pictures:
            raise Refusal(f"{key}={root}, but DVC watches {config.pictures}: write `pictures: {root}` in params.yaml.")
    header = "# Composed from conf/ and params.yaml by `dvc repro configure`: change those instead.\n"
    text = header + OmegaConf.to_yaml(OmegaConf.create(recorded(config)))
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")
