"""Refuse, when DVC starts the pipeline, what a stage would use without DVC seeing it change."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cifar_pipeline.config.choices import CONF
from cifar_pipeline.config.code import PACKAGE, PROJECT, SOURCE, loaded_sources
from cifar_pipeline.config.compose import OUTSIDE, stage_targets
from cifar_pipeline.config.watched import refuse_linked_folders
from cifar_pipeline.console import Refusal

# For each stage that uses `_target_`s, the package for a user's own.
OWN = {"preprocess": f"{PROJECT}.data", "train": PROJECT}


def require_watched(config: DictConfig) -> None:
    """Refuse code, folders of conf/ and values that come from where DVC does not look."""
    for folder in (CONF, SOURCE):
        refuse_linked_folders(folder)
    _refuse_other_sources(config)
    stages = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for stage in OWN:
        dependencies = [Path(entry).resolve() for entry in stages[stage]["deps"] if isinstance(entry, str)]
        for target in stage_targets(config, stage):
            _require_watched(target, stage, dependencies)


def _require_watched(target: str, stage: str, dependencies: list[Path]) -> None:
    own = OWN[stage]
    for name, path in loaded_sources().used("", [target]).paths.items():
        is_empty = path == SOURCE / PACKAGE / "__init__.py"
        if is_empty or any(path.resolve().is_relative_to(dependency) for dependency in dependencies):
            continue
        place = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        new = f"{own}.{'.'.join(target.split('.')[-2:])}"
        raise Refusal(
            f"{place if place.exists() else name} is used by `_target_={target}`, and DVC sees no change in it: move "
            f"it to src/{own.replace('.', '/')}/ and write `_target_={new}`."
        )


def _refuse_other_sources(config: DictConfig) -> None:
    """Refuse values from environment variables, and folders of options other than conf/."""
    if others := [str(place) for place in HydraConfig.get().searchpath or []]:
        raise Refusal(
            f"hydra.searchpath names {', '.join(others)}, where DVC sees no change: put the options into conf/."
        )
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    for key, value in _texts({str(group): node for group, node in plain.items() if group not in OUTSIDE}):
        if "${oc.env:" in value:
            raise Refusal(
                f"{key}={value} takes an environment variable, in which DVC sees no change: write the value itself."
            )


def _texts(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The words in nested values, each with its dotted key."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _texts(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value, path)
    elif isinstance(node, str):
        yield path, node
