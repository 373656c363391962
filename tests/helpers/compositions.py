"""Keep the configurations that Hydra has composed in this process, for tests that compose equal ones from equal files.

A composition takes 0.14 s, and half of those in the default test run repeat another one.
"""

import copy
from collections.abc import Hashable
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobRuntime
from omegaconf import DictConfig

from cifar_pipeline.config.params import CONF

MAX_KEPT = 200
# What register_configs() stores.
STORED = ("params.yaml", "struct.yaml", "local_settings.yaml", "launcher/conf_local.yaml")

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


def _files(folder: Path) -> Hashable:
    """Return what tells whether the files of a folder, or of a copy with the same times, are unchanged."""
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
