"""What Hydra knows of how this process was started: alone or as one job of a sweep, with which options."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

Stage = Callable[[DictConfig], Any]


def is_sweep() -> bool:
    """Whether this is one job of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def output_root() -> Path:
    """Below which folder a stage writes models/ and reports/: the project's, or that of this job of a multirun."""
    return Path(HydraConfig.get().runtime.output_dir) if is_sweep() else Path()


def cores() -> int:
    """The cores of this machine that this process may use: its share, where a launcher runs jobs beside each other."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    launcher = HydraConfig.get().launcher if is_sweep() else OmegaConf.create()
    if own := launcher.get("cpus_per_task") or OmegaConf.select(launcher, "ray.remote.num_cpus"):
        return max(1, int(own))
    beside = int(launcher.get("n_jobs") or 1)
    return max(1, here // beside) if beside > 0 else 1


def choices() -> dict[str, str]:
    """The option of each group that this configuration was composed with."""
    return {
        key: str(option) for key, option in HydraConfig.get().runtime.choices.items() if not key.startswith("hydra/")
    }
