"""Keep what Hydra has loaded and composed in this process, for tests that use equal files.

A composition takes 0.14 s, a fifth of that to load some thirty files. A third of those in the default test run repeat
another composition.
"""

import copy
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import IO, Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobRuntime
from omegaconf import DictConfig, ListConfig, OmegaConf

from cifar_pipeline.config.params import CONF

MAX_KEPT = 200
# What register_configs() stores.
STORED = ("params.yaml", "struct.yaml", "local_settings.yaml", "launcher/conf_local.yaml")

_loaded: dict[str, DictConfig | ListConfig] = {}
_kept: dict[Hashable, tuple[DictConfig, str]] = {}


def compose(config_name: str, overrides: list[str], return_hydra_config: bool) -> DictConfig:
    """Compose as Hydra does, or copy what it composed from the same files and overrides, also in another folder."""
    assert return_hydra_config
    key = (config_name, tuple(overrides), JobRuntime.instance().get("name"), _files(CONF), _stored())
    folder = str(CONF.resolve())
    if key not in _kept:
        config = hydra.compose(config_name, overrides, return_hydra_config)
        if not (config.hydra.searchpath or config.hydra.job.env_copy):  # of which the key has nothing
            _kept[key] = copy.deepcopy(config), folder
        if len(_kept) > MAX_KEPT:
            del _kept[next(iter(_kept))]
        return config
    composed, composed_in = _kept[key]
    config = copy.deepcopy(composed)
    config.hydra.runtime.cwd = str(Path.cwd())
    for source in config.hydra.runtime.config_sources:
        if source.path == composed_in:
            source.path = folder
    return config


def load(file: str | Path | IO[Any]) -> DictConfig | ListConfig:
    """Load YAML as OmegaConf does, or copy what it has loaded from the same text."""
    if not isinstance(file, str | Path):
        return _load(file)
    with Path(file).absolute().open(encoding="utf-8") as opened:
        return _load(opened)


def _load(file: IO[Any], original: Callable[..., DictConfig | ListConfig] = OmegaConf.load) -> DictConfig | ListConfig:
    start = file.tell()
    text = file.read()
    if text not in _loaded:
        file.seek(start)  # an error names the file
        _loaded[text] = original(file)
    return copy.deepcopy(_loaded[text])


def _files(folder: Path) -> Hashable:
    """Return names, sizes and times of the files of a folder, which a copy of it shares."""
    return tuple(
        (path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns)
        for path in sorted(folder.rglob("*.yaml"))
        for status in [path.stat()]
    )


def _stored() -> Hashable:
    """Return the text of params.yaml and the local settings in Hydra's ConfigStore."""
    texts = []
    for name in STORED:
        node = ConfigStore.instance().repo
        for part in name.split("/"):
            node = node.get(part, {})
        texts.append(repr(node.node) if node else "")
    return tuple(texts)
