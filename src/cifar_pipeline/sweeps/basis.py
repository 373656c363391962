"""What all points of a sweep have in common: code, conf/ and params.yaml, packages, variables, data.

A sweep notes it at its start: its identity holds it, and no point is trained on anything else.
"""

import functools
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifar_pipeline.config.choices import CONF, PARAMS
from cifar_pipeline.config.code import loaded_sources
from cifar_pipeline.config.compose import OUTSIDE, stage_targets
from cifar_pipeline.config.environment import variables, versions
from cifar_pipeline.config.identity import digest
from cifar_pipeline.config.targets import target_names
from cifar_pipeline.console import Refusal
from cifar_pipeline.documents import json_of, require_bounded

DATASET = Path("data/processed/dataset.json")
# Groups of conf/ that decide nothing about a training.
WITHOUT = {*OUTSIDE, "evaluate", "launcher", "sweep"}


@dataclass(frozen=True)
class Basis:
    """`code` has the hash of each file of the project, `values` what the files of conf/ and params.yaml hold."""

    code: dict[str, str]
    values: dict[str, Any]
    versions: dict[str, str]
    variables: dict[str, str]
    data: str

    @staticmethod
    def now() -> "Basis":
        """What is there now; the code is that of this process."""
        values = dict(_values())
        used = loaded_sources().used("train", target_names(list(values.values())))
        return Basis(
            code=loaded_sources().hashes() | used.hashes,
            values=values,
            versions=versions("train", used.packages),
            variables=variables(),
            data=_data_hash(),
        )

    @property
    def identity(self) -> str:
        """Stands for everything that a point may use."""
        used = loaded_sources().used("train", target_names(list(self.values.values())))
        return digest([used.hashes, self.values, self.versions, self.variables, self.data])

    def require_same(self, config: DictConfig) -> None:
        """Refuse to train a point where what it uses is not what the sweep began with."""
        if what := next(self._changes(config), None):
            raise Refusal(
                f"{what} after the sweep began, and its points would not be of one kind: undo that and type the same "
                "command again, which does the rest; or type it as it is, for a new sweep."
            )

    def _changes(self, config: DictConfig) -> Iterator[str]:
        now = Basis.now()
        used = loaded_sources().used("train", stage_targets(config, "train"))
        yield from (f"{name} was edited" for name, hashed in used.hashes.items() if self.code.get(name) != hashed)
        if changed := used.changed():  # this process has loaded the old code, the next may load the new
            yield f"{changed} was edited"
        yield from (f"{name} was edited" for name in _differing(self.values, now.values))
        yield from (f"The version of {name} was changed" for name in _differing(self.versions, now.versions))
        yield from (f"The variable {name} was changed" for name in _differing(self.variables, now.variables))
        if now.data != self.data:
            yield "data/processed was changed"


def _values() -> Iterator[tuple[str, Any]]:
    """The values in the files of conf/ and in params.yaml that may decide about a training, by the file's path."""
    for path in (*sorted(CONF.rglob("*.yaml")), PARAMS):
        if path.relative_to(CONF).parts[0] in WITHOUT if path.is_relative_to(CONF) else False:
            continue
        yield path.as_posix(), _parsed(path.read_bytes())


@functools.cache
def _parsed(content: bytes) -> Any:
    """The values in a file of YAML, less those that decide nothing about a training."""
    try:
        require_bounded(content)
        values = OmegaConf.to_container(OmegaConf.load(io.BytesIO(content)))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        return str(error)  # whoever composes it says what is wrong
    if not isinstance(values, dict):
        return values
    return {str(key): value for key, value in values.items() if key not in WITHOUT}


def _differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [key for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key)]


def _data_hash() -> str:
    """What stands for the data set that is there; empty where there is none, which the points refuse."""
    try:
        return str(json_of(DATASET.read_text(encoding="utf-8"))["hash"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
