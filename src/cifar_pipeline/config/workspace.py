"""Where things that outlive one stage are kept: the main workspace, also for an experiment in a temporary one."""

import os
from pathlib import Path


def main_workspace() -> Path:
    """The folder of the project that a person works in; DVC names it where a stage runs in a temporary copy."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def trainings_cache() -> Path:
    """Where checkpoints and results of trainings are kept, a folder for each identity."""
    return main_workspace() / ".cache" / "trainings"
