"""Where things that outlive one stage are kept: the main workspace, also for an experiment in a temporary one."""

import json
import os
import secrets
from pathlib import Path

from filelock import FileLock

from cifar_pipeline.utils.atomic import atomic_write, is_locked


def main_workspace() -> Path:
    """The folder of the project that a person works in; DVC names it where a stage runs in a temporary copy."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def runs_cache_dir() -> Path:
    """Where checkpoints and results of trainings are kept, a folder for each fingerprint."""
    return main_workspace() / ".cache" / "trainings"


def workspace_id() -> str:
    """The random id of the main workspace, which tells it from all others that use the same MLflow server.

    It is kept in `.cache/workspace-id` together with that file's inode, which no copy has: a copied workspace makes an
    id of its own. One that is moved on its disk, or mounted in another container, keeps its id.
    """
    path = main_workspace() / ".cache" / "workspace-id"
    if known := _read_id(path):
        return known
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(".workspace-id.lock")):
        if known := _read_id(path):
            return known
        new = secrets.token_hex(16)
        with atomic_write(path) as part:
            part.touch()
            part.write_text(json.dumps({"id": new, "inode": part.stat().st_ino}) + "\n")
        return new


def is_training_locked(fingerprint: str) -> bool:
    """Whether some process of this workspace is at the training with this fingerprint."""
    return is_locked(runs_cache_dir() / fingerprint)


def sweep_dir(sweep: str) -> Path:
    """What the process of the sweep with this fingerprint holds a lock for."""
    return main_workspace() / ".cache" / "sweeps" / sweep


def _read_id(path: Path) -> str:
    """The id in the file; empty where there is none, and where the file was copied from another workspace."""
    try:
        content = json.loads(path.read_text())
        return str(content["id"]) if content["inode"] == path.stat().st_ino else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""
