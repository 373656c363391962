"""Compose the configuration from conf/, params.yaml and overrides, and select the values that can change a result.

Also what Hydra knows about this process (a single run or a job of a sweep, the chosen options), and the experiments of
conf/experiment/ with their target accuracy.
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
from cifar_pipeline.config.source_files import HEIC_PACKAGE, PACKAGES, loaded_sources, versions
from cifar_pipeline.config.validation import target_names
from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import redact_values

# Groups and top-level keys that cannot change a result: the machine's, one start's, and those read after the training.
NON_RESULT_GROUPS = ("runtime", "registry", "predict", "serve", "rerun", "image_dir")
# Keys that cannot change a result in a group whose other keys can: the number of processes of a training.
NON_RESULT_KEYS = ("trainer.strategy", "trainer.devices", "trainer.num_nodes")


def compose_config(overrides: list[str] | None = None) -> DictConfig:
    """Compose the configuration of a stage that is started with these overrides on its command line.

    Raises UserError for an invalid params.yaml, or for an option that does not fit the experiment's values.
    """
    register_params()
    if GlobalHydra.instance().is_initialized():  # in a stage started by Hydra
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
    """Return the values that can change a result as nested dicts, with secrets redacted: files and runs show them."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    for group, _, key in (name.partition(".") for name in NON_RESULT_KEYS):
        plain[group].pop(key, None)
    return redact_values({str(key): value for key, value in plain.items() if key not in NON_RESULT_GROUPS})  # type: ignore[no-any-return]


def recorded_config(config: DictConfig, only: str | None = None) -> dict[str, Any]:
    """Return what DVC records: the values that can change a result, and package versions.

    Args:
        config: the composed configuration.
        only: the stage whose packages are recorded; None records those of each stage.
    """
    stages = [stage for stage in PACKAGES if only in (None, stage)]
    packages = {}
    for stage in stages:
        imported = loaded_sources().used(stage, stage_targets(config, stage)).packages
        if stage == "preprocess" and "root" in config.data:
            imported |= {HEIC_PACKAGE}
        packages[stage] = versions(stage, imported)
    return {**result_config(config), "versions": packages}


def stage_targets(config: DictConfig, stage: str) -> list[str]:
    """Return the `_target_` names that a stage uses: data sources before the training, all others in it."""
    values = result_config(config)
    data_targets = list(target_names(values.pop("data", {})))
    return {"download": data_targets, "preprocess": data_targets, "train": list(target_names(values))}.get(stage, [])


def write_composed(config: DictConfig, path: Path) -> None:
    """Write the recorded configuration as YAML, which DVC compares key by key.

    Raises UserError if the data's folder is not the one that dvc.yaml names: DVC would miss a changed image.
    """
    for key in ("data.root", "data.source.root", "data.fallback.root"):
        root = OmegaConf.select(config, key, default=config.image_dir)
        if root != config.image_dir:
            raise UserError(
                f"{key}={root}, but DVC watches {config.image_dir}: write `image_dir: {root}` in params.yaml."
            )
    header = "# Composed from conf/ and params.yaml by `dvc repro configure`: change those instead.\n"
    text = header + OmegaConf.to_yaml(OmegaConf.create(recorded_config(config)))
    with atomic_write(path) as tmp:
        tmp.write_text(text, encoding="utf-8")


Stage = Callable[[DictConfig], Any]


def is_sweep() -> bool:
    """Whether this process runs one job of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def output_root() -> Path:
    """Return the folder in which a stage writes models/ and reports/: the project's, or that of a multirun's job."""
    return Path(HydraConfig.get().runtime.output_dir) if is_sweep() else Path()


def available_cores() -> int:
    """Return the number of CPU cores for this process: its share, if a launcher runs several jobs at a time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    launcher = HydraConfig.get().launcher if is_sweep() else OmegaConf.create()
    if cores_per_job := launcher.get("cpus_per_task") or OmegaConf.select(launcher, "ray.remote.num_cpus"):
        return max(1, int(cores_per_job))
    jobs = int(launcher.get("n_jobs") or 1)
    return max(1, cores // jobs) if jobs > 0 else 1


def chosen_options() -> dict[str, str]:
    """Return the option of each group in this process's configuration."""
    return {
        key: str(option) for key, option in HydraConfig.get().runtime.choices.items() if not key.startswith("hydra/")
    }


# The accuracy on the test split that an experiment should reach, in the head of its file.
TARGET = re.compile(r"^#\s+Target:\s+([\d.]+) %", re.MULTILINE)

NO_VAL = "data.val_fraction=0"


@dataclass(frozen=True)
class ExperimentRecipe:
    """Experiment with overrides such as `data.val_fraction=0`, its values, and its target accuracy in percent."""

    experiment: str
    overrides: tuple[str, ...]
    values: dict[str, Any]
    target: float | None

    @property
    def has_val(self) -> bool:
        """Whether it has a validation split, instead of training on those images too."""
        return NO_VAL not in self.overrides

    @property
    def command(self) -> str:
        """Return the command that runs it."""
        settings = [f"experiment={self.experiment}", *(f"++overrides.{override}" for override in self.overrides)]
        return " ".join(["dvc exp run", *(f"-S {setting}" for setting in settings)])


def experiments() -> Iterator[ExperimentRecipe]:
    """Yield each experiment of conf/experiment/ twice: as it is, and trained on the train and validation splits."""
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        target = TARGET.search(path.read_text(encoding="utf-8"))
        for overrides in ((), (NO_VAL,)):
            values = result_config(compose_config([f"experiment={path.stem}", *overrides]))
            yield ExperimentRecipe(path.stem, overrides, values, float(target[1]) if target else None)
