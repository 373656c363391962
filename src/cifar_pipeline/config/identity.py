"""The identity of a training: a hash of all that decides its outcome.

Two trainings with one identity end with the same weights, bit for bit, on one machine with as many threads. Checkpoints
lie under it, MLflow keeps one run for it, and what has finished under it need not be trained again.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cifar_pipeline.config.code import imported_files, module_file
from cifar_pipeline.config.compose import decisive

# The keys of the configuration that decide a training's outcome; dvc.yaml names the same for `train`.
KEYS = (
    "seed", "model", "normalize", "augment", "loss", "optimizer", "schedule", "average", "precision", "trainer",
    "views",
)  # fmt: skip
# The rooms whose code computes; what only speaks or keeps records is no part of an identity.
ROOMS = ("data", "models", "training", "inference")


def identity(config: DictConfig, dataset_hash: str, script: Path = Path("src/train.py")) -> str:
    """16 hexadecimal digits that stand for the choices, the data and the code of a training."""
    values = {key: decisive(config)[key] for key in KEYS}
    source = script.parent
    code = {
        str(path.relative_to(source)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in imported_files([script, *_targets(values, source)], source)
        if path == script or path.relative_to(source).parts[1] in ROOMS
    }
    text = json.dumps({"values": values, "data": dataset_hash, "code": code}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _targets(values: Any, source: Path) -> Iterator[Path]:
    """The files of ours that the `_target_`s among `values` name."""
    if isinstance(values, dict):
        file = module_file(str(values.get("_target_", "")).rpartition(".")[0], source)
        if file is not None:
            yield file
        for value in values.values():
            yield from _targets(value, source)
