"""Where things that outlive one stage are kept: the main workspace, also for an experiment in a temporary one."""

import os
import platform
from pathlib import Path

from cifar_pipeline.files import is_busy


def main_workspace() -> Path:
    """The folder of the project that a person works in; DVC names it where a stage runs in a temporary copy."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def trainings_cache() -> Path:
    """Where checkpoints and results of trainings are kept, a folder for each identity."""
    return main_workspace() / ".cache" / "trainings"


def workspace_name() -> str:
    """The main workspace among those of all machines."""
    return f"{platform.node()}:{main_workspace()}"


def is_held(identity: str) -> bool:
    """Whether some process of this workspace is at the training with this identity."""
    return is_busy(trainings_cache() / identity)
