"""Refuse, when DVC starts the pipeline, what a stage would use without DVC seeing it change.

Refuse inputs in which DVC would not see a change.

DVC 3.67 follows a link to a file, and one that a whole dependency is, but none to a folder inside a dependency.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cifar_pipeline.config.compose import NON_RESULT_GROUPS, stage_targets
from cifar_pipeline.config.params import CONF
from cifar_pipeline.config.source_files import PACKAGE, PROJECT, SOURCE, loaded_sources
from cifar_pipeline.utils.errors import UserError


def reject_linked_folders(folder: Path) -> None:
    """Refuse a link to a folder at any depth below `folder`; hidden names are left out. Raises Refusal naming it."""
    for place, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            path = Path(place, name)
            if path.is_symlink():
                raise UserError(
                    f"{path} is a link to a folder, in which DVC sees no change: put the folder itself in its place, "
                    "or a folder with links to its files."
                )


def reject_outside(path: str, folder: Path, key: str) -> None:
    """Refuse a path that leads out of the `folder` that DVC watches. Raises Refusal naming the key of conf/."""
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise UserError(
            f"{key}={path} lies outside of {folder}, where DVC sees no change: put the file into that folder and write "
            f"{key}={Path(path).name}."
        )


# For each stage that uses `_target_`s, the package for a user's own.
OWN_FOLDERS = {"preprocess": f"{PROJECT}.data", "train": PROJECT}


def require_tracked_inputs(config: DictConfig) -> None:
    """Refuse code, folders of conf/ and values that come from where DVC does not look."""
    for folder in (CONF, SOURCE):
        reject_linked_folders(folder)
    _refuse_other_sources(config)
    stages = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for stage in OWN_FOLDERS:
        dependencies = [Path(entry).resolve() for entry in stages[stage]["deps"] if isinstance(entry, str)]
        for target in stage_targets(config, stage):
            _require_tracked(target, stage, dependencies)


def _require_tracked(target: str, stage: str, dependencies: list[Path]) -> None:
    own = OWN_FOLDERS[stage]
    for name, path in loaded_sources().used("", [target]).paths.items():
        is_empty = path == SOURCE / PACKAGE / "__init__.py"
        if is_empty or any(path.resolve().is_relative_to(dependency) for dependency in dependencies):
            continue
        place = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        new = f"{own}.{'.'.join(target.split('.')[-2:])}"
        raise UserError(
            f"{place if place.exists() else name} is used by `_target_={target}`, and DVC sees no change in it: move "
            f"it to src/{own.replace('.', '/')}/ and write `_target_={new}`."
        )


def _refuse_other_sources(config: DictConfig) -> None:
    """Refuse values from environment variables, and folders of options other than conf/."""
    if others := [str(place) for place in HydraConfig.get().searchpath or []]:
        raise UserError(
            f"hydra.searchpath names {', '.join(others)}, where DVC sees no change: put the options into conf/."
        )
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    for key, value in _texts({str(group): node for group, node in plain.items() if group not in NON_RESULT_GROUPS}):
        if "${oc.env:" in value:
            raise UserError(
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
