"""The configuration as DVC tracks it: composed from conf/ and params.yaml, less what cannot change a result.

What Hydra knows of how this process was started: alone or as one job of a sweep, with which options.

The recipes of conf/experiment/ as they stand: what each is composed of, and what it was made to reach.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from cifar_pipeline.config.params import CONF, register_params, reject_values_of_other_options
from cifar_pipeline.config.source_files import IMAGE_PACKAGES, PACKAGES, loaded_sources, versions
from cifar_pipeline.config.validation import target_names
from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import redact_values

# What belongs to the machine, to this one start of a stage, or to what comes after the training.
NON_RESULT_GROUPS = ("runtime", "registry", "predict", "serve", "rerun", "image_dir")
# Keys within a group that is otherwise decisive: by how many processes a training is done.
NON_RESULT_KEYS = ("trainer.strategy", "trainer.devices", "trainer.num_nodes")


def compose_config(overrides: list[str] | None = None) -> DictConfig:
    """The configuration that a stage gets when it is started with these overrides on its command line."""
    register_params()
    if GlobalHydra.instance().is_initialized():  # in a stage that Hydra has started
        return _composed(overrides or [])
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return _composed(overrides or [])


def _composed(overrides: list[str]) -> DictConfig:
    config = compose("config", overrides=overrides, return_hydra_config=True)
    reject_values_of_other_options({key: str(option) for key, option in config.hydra.runtime.choices.items()})
    with open_dict(config):
        del config["hydra"]
    return config


def result_config(config: DictConfig) -> dict[str, Any]:
    """The values that can change a result, as plain nested dicts, redacted: they are written to files and runs."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    for group, _, key in (name.partition(".") for name in NON_RESULT_KEYS):
        plain[group].pop(key, None)
    return redact_values({str(key): value for key, value in plain.items() if key not in NON_RESULT_GROUPS})  # type: ignore[no-any-return]


def recorded_config(config: DictConfig, only: str | None = None) -> dict[str, Any]:
    """What DVC records: the decisive values and the versions of the packages that compute, in each stage or in one."""
    stages = [stage for stage in PACKAGES if only in (None, stage)]
    packages = {}
    for stage in stages:
        imported = loaded_sources().used(stage, stage_targets(config, stage)).packages
        if stage == "preprocess" and "root" in config.data:
            imported |= {IMAGE_PACKAGES}
        packages[stage] = versions(stage, imported)
    return {**result_config(config), "versions": packages}


def stage_targets(config: DictConfig, stage: str) -> list[str]:
    """What the `_target_`s name that are used in a stage: data sources before the training, the others in it."""
    values = result_config(config)
    data = list(target_names(values.pop("data", {})))
    return {"download": data, "preprocess": data, "train": list(target_names(values))}.get(stage, [])


def write_composed(config: DictConfig, path: Path) -> None:
    """Write what DVC records as YAML, for DVC to compare key by key.

    Raises Refusal where the data's folder is not the one that dvc.yaml names: DVC would not see an image change.
    """
    for key in ("data.root", "data.source.root", "data.fallback.root"):
        root = OmegaConf.select(config, key, default=config.image_dir)
        if root != config.image_dir:
            raise UserError(
                f"{key}={root}, but DVC watches {config.image_dir}: write `image_dir: {root}` in params.yaml."
            )
    header = "# Composed from conf/ and params.yaml by `dvc repro configure`: change those instead.\n"
    text = header + OmegaConf.to_yaml(OmegaConf.create(recorded_config(config)))
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


Stage = Callable[[DictConfig], Any]


def is_sweep() -> bool:
    """Whether this is one job of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def output_root() -> Path:
    """Below which folder a stage writes models/ and reports/: the project's, or that of this job of a multirun."""
    return Path(HydraConfig.get().runtime.output_dir) if is_sweep() else Path()


def available_cores() -> int:
    """The cores of this machine that this process may use: its share, where a launcher runs jobs beside each other."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    launcher = HydraConfig.get().launcher if is_sweep() else OmegaConf.create()
    if own := launcher.get("cpus_per_task") or OmegaConf.select(launcher, "ray.remote.num_cpus"):
        return max(1, int(own))
    beside = int(launcher.get("n_jobs") or 1)
    return max(1, here // beside) if beside > 0 else 1


def chosen_options() -> dict[str, str]:
    """The option of each group that this configuration was composed with."""
    return {
        key: str(option) for key, option in HydraConfig.get().runtime.choices.items() if not key.startswith("hydra/")
    }


# In the head of an experiment's file: the accuracy on the test part that it was made for.
TARGET = re.compile(r"^#\s+Target:\s+([\d.]+) %", re.MULTILINE)

NO_VAL = "data.val_fraction=0"


@dataclass(frozen=True)
class ExperimentRecipe:
    """An experiment with overrides such as `data.val_fraction=0`, its values, and its target in percent."""

    experiment: str
    overrides: tuple[str, ...]
    values: dict[str, Any]
    target: float | None

    @property
    def has_val(self) -> bool:
        """Whether the validation split is kept apart from the training."""
        return NO_VAL not in self.overrides

    @property
    def command(self) -> str:
        """What a person types to run it."""
        settings = [f"experiment={self.experiment}", *(f"++overrides.{override}" for override in self.overrides)]
        return " ".join(["dvc exp run", *(f"-S {setting}" for setting in settings)])


def experiments() -> Iterator[ExperimentRecipe]:
    """Each experiment of conf/experiment/, as it is and trained on the train and validation splits together."""
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        target = TARGET.search(path.read_text(encoding="utf-8"))
        for overrides in ((), (NO_VAL,)):
            values = result_config(compose_config([f"experiment={path.stem}", *overrides]))
            yield ExperimentRecipe(path.stem, overrides, values, float(target[1]) if target else None)
