"""Reject inputs whose changes DVC would miss: untracked code, linked folders, environment variables in conf/.

DVC 3.67 follows a link to a file and a dependency that is itself a link, but no link to a folder inside a dependency.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cifar_pipeline.config.compose import NON_RESULT_GROUPS, stage_targets
from cifar_pipeline.config.params import CONF, DEFAULT_WEIGHTS, MLFLOW_SCHEMES, format_override
from cifar_pipeline.config.source_files import PACKAGE, PROJECT, SOURCE, loaded_sources
from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import list_names


def reject_linked_folders(folder: Path) -> None:
    """Raise UserError for a link to a folder at any depth below `folder`, except in hidden folders."""
    for parent, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            path = Path(parent, name)
            if path.is_symlink():
                raise UserError(
                    f"{path} is a link to a folder, whose changes DVC does not detect: replace it by the folder "
                    "itself, or by a folder with links to its files."
                )


def reject_outside(path: str, folder: Path, key: str) -> None:
    """Raise UserError for a path outside of the `folder` that DVC tracks; `key` is the path's key in conf/."""
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise UserError(
            f"{key}={path} is outside of {folder}, the folder that DVC tracks: move the file into it and write "
            f"{format_override(key, Path(path).name)}."
        )


# Files of weights to start from.
PRETRAINED = Path("pretrained")
# Folders of users' own files that stages depend on, and the output of `configure` that lists them.
INPUT_FOLDERS, LIST_OF_FOLDERS = (Path("images"), PRETRAINED), Path(".cache/input_folders")
# The package for a user's own code, for each stage that uses `_target_`s.
PROJECT_PACKAGES = {"preprocess": f"{PROJECT}.data", "train": PROJECT}


def create_input_folders() -> None:
    """Create the folders of users' own files where they are missing, and list them.

    DVC needs each dependency of a stage, and git keeps no empty folder; a file to keep it would have to be tracked by
    git, and then `dvc add` would refuse the folder. The list is an output of `configure`, so that DVC runs this in each
    clone and temporary workspace: there the list is missing.
    """
    for folder in INPUT_FOLDERS:
        folder.mkdir(exist_ok=True)
        if not any(folder.iterdir()):
            (folder / ".keep").touch()  # because DVC warns of each empty folder
    with atomic_write(LIST_OF_FOLDERS) as tmp:
        tmp.write_text("".join(f"{folder}\n" for folder in INPUT_FOLDERS), encoding="utf-8")


def require_tracked_inputs(config: DictConfig) -> None:
    """Raise UserError for code, config folders or values that DVC does not track."""
    for folder in (CONF, SOURCE):
        reject_linked_folders(folder)
    _reject_untracked_values(config)
    _reject_untracked_weights(config)
    stages = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for stage in PROJECT_PACKAGES:
        dependencies = [Path(entry).resolve() for entry in stages[stage]["deps"] if isinstance(entry, str)]
        for target in stage_targets(config, stage):
            _require_tracked(target, stage, dependencies)


def _reject_untracked_weights(config: DictConfig) -> None:
    """Raise UserError for a file of weights outside of the folder that DVC tracks."""
    address = OmegaConf.select(config, "model.weights")
    if isinstance(address, str) and address != DEFAULT_WEIGHTS and not address.startswith(MLFLOW_SCHEMES):
        path = Path(address)
        if ".." in path.parts or not path.is_relative_to(PRETRAINED):
            raise UserError(
                f"model.weights={address} is outside of {PRETRAINED}/, the folder that DVC tracks: move it there and "
                f"write {format_override('model.weights', str(PRETRAINED / path.name))}."
            )


def _require_tracked(target: str, stage: str, dependencies: list[Path]) -> None:
    package = PROJECT_PACKAGES[stage]
    for name, path in loaded_sources().used("", [target]).paths.items():
        is_empty = path == SOURCE / PACKAGE / "__init__.py"
        if is_empty or any(path.resolve().is_relative_to(dependency) for dependency in dependencies):
            continue
        shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        new_target = f"{package}.{'.'.join(target.split('.')[-2:])}"
        raise UserError(
            f"{shown if shown.exists() else name} is used by `_target_={target}`, but DVC does not track it: move it "
            f"to src/{package.replace('.', '/')}/ and write `_target_={new_target}`."
        )


def _reject_untracked_values(config: DictConfig) -> None:
    """Raise UserError for values from environment variables and for option folders other than conf/."""
    if folders := [str(folder) for folder in HydraConfig.get().searchpath or []]:
        raise UserError(
            f"hydra.searchpath names {list_names(folders)}, which DVC does not track: put the options into conf/."
        )
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    for key, value in _strings({str(group): node for group, node in plain.items() if group not in NON_RESULT_GROUPS}):
        if "${oc.env:" in value:
            raise UserError(
                f"{key}={value} reads an environment variable, which DVC does not track: write the value itself."
            )


def _strings(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the strings in nested values with their dotted keys."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _strings(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value, path)
    elif isinstance(node, str):
        yield path, node
