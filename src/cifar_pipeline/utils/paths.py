"""Paths in the main workspace, which a DVC experiment in a temporary copy shares; its id; file names in models."""

import json
import os
import secrets
from pathlib import Path

from filelock import FileLock

from cifar_pipeline.utils.atomic import atomic_write, is_locked

# Files in the folder of a model: the graph, the weights, MLflow's description.
MODEL_FILE, WEIGHTS_FILE, MLMODEL_FILE = "model.onnx", "weights.safetensors", "MLmodel"


def main_workspace() -> Path:
    """Return the project's folder. Where DVC runs a stage in a temporary copy, it is the one copied (DVC_ROOT)."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def runs_cache_dir() -> Path:
    """Return the folder with the checkpoints and results of trainings, one subfolder per fingerprint."""
    return main_workspace() / ".cache" / "trainings"


def workspace_id() -> str:
    """Return the random id of the main workspace, which distinguishes workspaces that share an MLflow server.

    It is stored in `.cache/workspace-id` together with that file's inode, which differs in every copy: a copied
    workspace gets a new id. One that is moved on its disk, or mounted in another container, keeps its id.
    """
    path = main_workspace() / ".cache" / "workspace-id"
    if known := _read_id(path):
        return known
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(".workspace-id.lock")):
        if known := _read_id(path):
            return known
        new = secrets.token_hex(16)
        with atomic_write(path) as tmp:
            tmp.touch()
            tmp.write_text(json.dumps({"id": new, "inode": tmp.stat().st_ino}) + "\n", encoding="utf-8")
        return new


def is_training_locked(fingerprint: str) -> bool:
    """Whether some process of this workspace runs the training with this fingerprint."""
    return is_locked(runs_cache_dir() / fingerprint)


def sweep_dir(sweep: str) -> Path:
    """Return the path that the process of the sweep with this fingerprint locks."""
    return main_workspace() / ".cache" / "sweeps" / sweep


def keep_newest(folder: Path, pattern: str, count: int) -> None:
    """Delete files of a folder except the `count` newest; hidden ones, which other processes are writing, stay."""
    files = [path for path in folder.glob(pattern) if not path.name.startswith(".")]
    for path in sorted(files, key=lambda path: path.stat().st_mtime)[: max(0, len(files) - count)]:
        path.unlink(missing_ok=True)


def _read_id(path: Path) -> str:
    """Return the id in the file; empty where there is none, or where the file is a copy from another workspace."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return str(content["id"]) if content["inode"] == path.stat().st_ino else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""
