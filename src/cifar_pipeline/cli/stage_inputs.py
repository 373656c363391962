"""What a stage started from, compared with what is there before it publishes a result.

DVC records a stage's dependencies after the stage has run: what changed meanwhile would stand in dvc.lock with a result
that was made of something else.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifar_pipeline.config.compose import compose_config, recorded_config, stage_targets
from cifar_pipeline.config.params import to_yaml_inline
from cifar_pipeline.config.source_files import UsedFiles, loaded_sources
from cifar_pipeline.config.validation import format_error
from cifar_pipeline.utils.errors import EnvironmentFailure, UserError
from cifar_pipeline.utils.safe_io import require_bounded

COMPOSED, STAGES = Path("composed.yaml"), Path("dvc.yaml")
CONFIGURE = "configure"
EMPTY = object()


@dataclass
class StageStart:
    """What a stage started from: values by their dotted keys, the code, and inputs with how each is looked at."""

    stage: str
    overrides: list[str]
    values: dict[str, Any]
    used: UsedFiles
    inputs: dict[str, tuple[Callable[[], str], str]] = field(default_factory=dict)

    @property
    def is_dvcs(self) -> bool:
        """Whether DVC started the stage."""
        return is_started_by_dvc(self.stage)


_start: StageStart | None = None


def is_started_by_dvc(stage: str) -> bool:
    """Whether DVC started this process as `stage`, and not another one that started it."""
    return os.environ.get("DVC_STAGE", "").rpartition(":")[2] == stage


def begin(stage: str, config: DictConfig) -> None:
    """Note what a stage starts from.

    Raises `Refusal` where DVC started it, and composed.yaml, which DVC records, says otherwise than params.yaml and
    conf/ do by now.
    """
    global _start
    used = loaded_sources().used(stage, stage_targets(config, stage))
    start = StageStart(stage, list(HydraConfig.get().overrides.task), _values(stage, config), used)
    if start.is_dvcs and stage != CONFIGURE:
        _require_recorded(start)
    _start = start


def watch(name: str, look: Callable[[], str]) -> None:
    """Note an input of the running stage; `look` returns what stands for its content."""
    assert _start is not None
    _start.inputs[name] = (look, _snapshot(look))


def require_unchanged() -> None:
    """Raise `Fault` where the code, the choices or an input of the running stage has changed since it started."""
    assert _start is not None
    what = next(_changes(_start), None)
    if what is not None:
        command = "`dvc repro`" if _start.is_dvcs else "the same command"
        kept = ", or undo the change first to keep the training that was done" if _start.stage == "train" else ""
        raise EnvironmentFailure(
            f"{what} while this ran, so nothing was published: type {command} to run with it{kept}."
        )


def state_of(*paths: Path) -> str:
    """What stands for the content of files and folders without reading it: names, sizes and times of change."""
    states = []
    for path in _files(*paths):
        state = path.stat() if path.exists() else None
        states.append(f"{path} {(state.st_size, state.st_mtime_ns, state.st_ino) if state else ''}")
    return hashlib.sha256("\n".join(states).encode("utf-8", "surrogateescape")).hexdigest()


def content_of(*paths: Path) -> str:
    """A hash of the content of files and folders."""
    whole = hashlib.sha256()
    for path in _files(*paths):
        whole.update(str(path).encode("utf-8", "surrogateescape"))
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def _files(*paths: Path) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
        for place, folders, names in os.walk(path):
            folders.sort()
            yield from (Path(place, name) for name in sorted(names))


def _snapshot(look: Callable[[], str]) -> str:
    try:
        return look()
    except (UserError, OSError) as error:
        return str(error)


def _changes(start: StageStart) -> Iterator[str]:
    """What has changed since the start, a phrase for each thing."""
    if file := start.used.changed():
        yield f"{file} was edited"
    try:
        now = _values(start.stage, compose_config(start.overrides))
    except (UserError, HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        yield f"params.yaml or conf/ was edited ({format_error(error).rstrip('.')})"
        return
    if found := _difference(start.values, now):
        key, before, after = found
        yield f"{key} was changed from {before} to {after}"
    if start.is_dvcs and start.stage != CONFIGURE and (found := _difference(start.values, _recorded(start.stage))):
        yield f"{found[0]} was changed from {found[1]} to {found[2]} in {COMPOSED}"
    for name, (look, before) in start.inputs.items():
        if _snapshot(look) != before:
            yield f"{name} was changed"


def _require_recorded(start: StageStart) -> None:
    """Refuse to run on other values than DVC records."""
    found = _difference(start.values, _recorded(start.stage))
    if found is None:
        return
    key, here, there = found
    if key.startswith("versions."):
        raise UserError(
            f"{key.rpartition('.')[2]} {here} is installed, but {COMPOSED}, which DVC records, says {there}: type "
            "`dvc repro -f configure`, then `dvc repro`; or install what it says (`make setup`)."
        )
    raise UserError(
        f"{key} is {here} by params.yaml and conf/, but {there} in {COMPOSED}, which DVC records: `dvc repro` "
        "composes it anew and runs what depends on it."
    )


def _values(stage: str, config: DictConfig) -> dict[str, Any]:
    """The values that a stage depends on, as they would be recorded for it."""
    return _select(stage, recorded_config(config, only=None if stage == CONFIGURE else stage))


def _recorded(stage: str) -> dict[str, Any]:
    """The values in composed.yaml that a stage depends on. Raises Refusal where the file can't be read."""
    try:
        require_bounded(COMPOSED.read_bytes())
        content = OmegaConf.to_container(OmegaConf.load(COMPOSED))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{COMPOSED} is missing or damaged: `dvc repro -f configure` writes it.")
    return _select(stage, {str(key): value for key, value in content.items()})


def _select(stage: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values below the keys that dvc.yaml names for a stage, or all of them, by their dotted keys."""
    flat = dict(_leaves(values))
    entries = _stage_names().get(stage, {}).get("params", ())
    listed = [entry.get(str(COMPOSED)) for entry in entries if isinstance(entry, Mapping)]
    keys = [key for entry in listed for key in entry or ()]
    if not keys and stage == CONFIGURE:
        return flat
    keys = keys or [*(key for key in values if key != "versions"), f"versions.{stage}"]
    return {name: value for name, value in flat.items() if any(f"{name}.".startswith(f"{key}.") for key in keys)}


def _stage_names() -> dict[str, Any]:
    if not STAGES.is_file():
        return {}
    stages: dict[str, Any] = yaml.safe_load(STAGES.read_text(encoding="utf-8")).get("stages", {})
    return stages


def _leaves(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """The first key whose values differ, and both as a person would write them."""
    for key in dict.fromkeys([*one, *other]):
        values = one.get(key, EMPTY), other.get(key, EMPTY)
        if values[0] != values[1]:
            first, second = ("not there" if value is EMPTY else to_yaml_inline(value) for value in values)
            return key, first, second
    return None
