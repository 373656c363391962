"""Compose the configuration from conf/, params.yaml and overrides, and select the values that can change a result.

Also what Hydra knows about this process (a single run or a job of a sweep, the chosen options), and the experiments of
conf/experiment/ with their target accuracy.

The fingerprint of a training is a hash of the config, data, code and packages that decide its result.

Trainings with the same fingerprint end with bit-identical weights on the same machine with the same number of threads.
The fingerprint names the checkpoint folder and the MLflow run, and a training that has finished is not repeated.
"""

import hashlib
import json
import re
import string
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from cifar_pipeline.config.local_settings import register_configs
from cifar_pipeline.config.params import CONF, reject_values_of_other_options, to_yaml_inline
from cifar_pipeline.config.schema import validate
from cifar_pipeline.config.source_files import HEIC_PACKAGE, PACKAGES, SourceTree, loaded_sources, variables, versions
from cifar_pipeline.config.validation import target_names
from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.cpu_load import allowed_cores
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import redact_values

# Groups and top-level keys that cannot change a result: the machine's, one start's, and those read after the training.
NON_RESULT_GROUPS = (
    "runtime", "logger", "mlflow", "lr_finder", "comparison", "registry", "predict", "serve", "rerun", "image_dir",
)  # fmt: skip
# Keys that cannot change a result in a group whose other keys can.
NON_RESULT_KEYS = (
    "trainer.strategy",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.num_sanity_val_steps",
    "trainer.detect_anomaly",
    "trainer.inference_mode",
    "trainer.reload_dataloaders_every_n_epochs",
    "trainer.enable_autolog_hparams",
    # The lookup of the weights; their hash is in the fingerprint.
    "model.default_weights",
)
# Groups and top-level keys that cannot change a training; all others decide it, a user's new group among them.
NON_TRAINING_GROUPS = (*NON_RESULT_GROUPS, "evaluation")
# The keys of the other stages. composed.yaml has a section for each stage, which dvc.yaml names.
STAGE_KEYS = {
    "download": ("data.source", "data.fallback", "data.mirrors", "data.timeout"),
    "preprocess": (
        "data.source",
        "data.fallback",
        "data.val_fraction",
        "data.folds",
        "data.fold",
        "data.split_seed",
    ),
    "evaluate": ("evaluation", "metrics", "model", "normalization", "tta"),
}
# Values of another stage that a stage may read, because they do not change its result: the objective of a sweep.
READABLE_KEYS = {"train": ("evaluation.checkpoint",)}
STAGES = ("download", "preprocess", "train", "evaluate")


def compose_config(overrides: list[str] | None = None) -> DictConfig:
    """Compose the configuration of a stage that is started with these overrides on its command line.

    Raises UserError for an invalid params.yaml, or for an option that does not fit the experiment's values.
    """
    config = compose_with_hydra(overrides or [])
    with open_dict(config):
        del config["hydra"]
    return config


def compose_with_hydra(overrides: list[str]) -> DictConfig:
    """Compose as `compose_config` does, with Hydra's settings in the key `hydra`."""
    register_configs()
    if GlobalHydra.instance().is_initialized():  # in a stage started by Hydra
        return _composed(overrides)
    with hydra_initialized():
        return _composed(overrides)


def hydra_initialized(job_name: str = "app") -> initialize_config_dir:
    """Return a context in which Hydra composes from conf/, for a job of this name."""
    return initialize_config_dir(str(CONF.resolve()), job_name=job_name, version_base="1.3")


def _composed(overrides: list[str]) -> DictConfig:
    config = compose("config", overrides=overrides, return_hydra_config=True)
    reject_values_of_other_options({key: str(option) for key, option in config.hydra.runtime.choices.items()})
    return config


def help_text(script: str, overrides: list[str], resolve: bool) -> str:
    """Return the text of `--help`: the template of `hydra.help`, filled with the groups, options and composed values.

    Hydra would compose the list of configuration files anew for each group, twice, which takes seconds.
    """
    config = compose_with_hydra([*overrides, f"hydra.job.name={script}"])
    template = string.Template(config.hydra.help.template)
    with open_dict(config):
        del config["hydra"]
    files = [path.relative_to(CONF) for path in sorted(CONF.rglob("*.yaml"))]
    names: dict[str, list[str]] = {}
    for file in files:
        if file.parent.parts and file.parent.parts[0] != "hydra":
            names.setdefault(file.parent.as_posix(), []).append(file.stem)
    listed = "".join(f"{group}: {', '.join(names[group])}\n" for group in sorted(names))
    return template.safe_substitute(APP_CONFIG_GROUPS=listed, CONFIG=OmegaConf.to_yaml(config, resolve=resolve))


_experiment_name = ""


def set_experiment_name(name: str) -> None:
    """Set the name of the experiment in MLflow that this process uses, which its command line may have changed."""
    global _experiment_name
    _experiment_name = name


def experiment_name() -> str:
    """Return the name of the experiment in MLflow: the one set, or else that of conf/ and params.yaml."""
    if not _experiment_name:
        load_config()
    return _experiment_name


def load_config(overrides: list[str] | None = None) -> DictConfig:
    """Compose conf/, params.yaml and overrides, validate the configuration, and use its experiment in MLflow."""
    config = compose_config(overrides)
    validate(config)
    set_experiment_name(config.mlflow.experiment_name)
    return config


def stage_config(config: DictConfig, stage: str) -> dict[str, Any]:
    """Return the values that decide the result of a stage as nested dicts, with secrets redacted.

    Files and runs show them: they are the stage's section of composed.yaml and, for `train`, the run's parameters.
    """
    return redact_values(_stage_values(_to_dict(config), stage))  # type: ignore[no-any-return]


def training_config(config: DictConfig) -> dict[str, Any]:
    """Return the values of `train` that describe the training itself, without its data."""
    return _without(stage_config(config, "train"), ["data"])


def restrict_to_stage(config: DictConfig, stage: str) -> DictConfig:
    """Return a stage's values and those that cannot change a result; reading another stage's value is an error.

    DVC would not repeat the stage when that value changes.
    """
    values = _to_dict(config)
    restricted = OmegaConf.merge(
        _stage_values(values, stage),
        _only(values, (*NON_RESULT_KEYS, *READABLE_KEYS.get(stage, ()))),
        _only(values, NON_RESULT_GROUPS),
    )
    assert isinstance(restricted, DictConfig)
    OmegaConf.set_struct(restricted, True)
    return restricted


def _stage_values(values: dict[str, Any], stage: str) -> dict[str, Any]:
    if stage != "train":
        return _without(_only(values, STAGE_KEYS[stage]), NON_RESULT_KEYS)
    training = _without(values, ["data", *NON_TRAINING_GROUPS, *NON_RESULT_KEYS])
    return _only(values, STAGE_KEYS["preprocess"]) | training


def _to_dict(config: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _only(values: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Select keys of nested values: `group` or `group.key`."""
    selected: dict[str, Any] = {}
    for group, _, key in (name.partition(".") for name in keys):
        if not key and group in values:
            selected[group] = values[group]
        elif key and key in values.get(group, ()):
            selected.setdefault(group, {})[key] = values[group][key]
    return selected


def _without(values: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Leave out keys of nested values: `group` or `group.key`."""
    omitted = set(keys)
    kept = {group: value for group, value in values.items() if group not in omitted}
    return {
        group: {key: value for key, value in node.items() if f"{group}.{key}" not in omitted}
        if isinstance(node, dict)
        else node
        for group, node in kept.items()
    }


def recorded_config(config: DictConfig, stages: Iterable[str] = STAGES) -> dict[str, Any]:
    """Return what DVC records: for each stage the values that decide its result, and package versions."""
    return {stage: {**stage_config(config, stage), **_versions(config, stage)} for stage in stages}


def _versions(config: DictConfig, stage: str) -> dict[str, Any]:
    if stage not in PACKAGES:
        return {}
    imported = loaded_sources().used(stage, stage_targets(config, stage)).packages
    if stage == "preprocess" and "root" in config.data:
        imported |= {HEIC_PACKAGE}
    return {"versions": versions(stage, imported)}


def stage_targets(config: DictConfig, stage: str) -> list[str]:
    """Return the `_target_` names that a stage uses: data sources before the training, all others in it."""
    if stage in ("download", "preprocess"):
        return list(target_names(stage_config(config, stage)))
    return list(target_names(training_config(config))) if stage == "train" else []


def write_composed(config: DictConfig, path: Path) -> None:
    """Write the recorded configuration as YAML, which DVC compares key by key.

    Raises UserError if the data's folder is not the one that dvc.yaml names: DVC would miss a changed image.
    """
    for key in ("data.root", "data.source.root", "data.fallback.root"):
        root = OmegaConf.select(config, key, default=config.image_dir)
        if root != config.image_dir:
            raise UserError(
                f"{key}={root}, but DVC watches {config.image_dir}: write `image_dir: {to_yaml_inline(root)}` in "
                "params.yaml."
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
    cores = allowed_cores()
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
            values = stage_config(compose_config([f"experiment={path.stem}", *overrides]), "train")
            yield ExperimentRecipe(path.stem, overrides, values, float(target[1]) if target else None)


def fingerprint(
    config: DictConfig, dataset_hash: str, sources: SourceTree | None = None, weights_hash: str = ""
) -> str:
    """Return 16 hexadecimal digits that identify a training's configuration, data, code and packages.

    Args:
        config: the composed configuration.
        dataset_hash: the hash in dataset.json.
        sources: the code; None means the code of this process.
        weights_hash: of the pretrained weights; empty without.
    """
    values = training_config(config)
    used = (sources or loaded_sources()).used("train", target_names(values))
    return digest(
        {
            "values": values,
            "data": dataset_hash,
            **({"weights": weights_hash} if weights_hash else {}),
            "code": used.hashes,
            "versions": versions("train", used.packages),
            "variables": variables(),
        }
    )


def digest(content: Any) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of nested values."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
