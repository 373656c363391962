"""The fingerprint of a training: a hash of all that decides its outcome.

Two trainings with one fingerprint end with the same weights, bit for bit, on one machine with as many threads. Checkpoints
lie under it, MLflow keeps one run for it, and what has finished under it need not be trained again.
"""

import hashlib
import json
from typing import Any

from omegaconf import DictConfig

from cifar_pipeline.config.compose import result_config
from cifar_pipeline.config.source_files import SourceTree, loaded_sources, variables, versions
from cifar_pipeline.config.validation import target_names

# The keys of the configuration that decide a training's outcome; dvc.yaml names the same for `train`.
FINGERPRINT_KEYS = (
    "seed", "model", "normalization", "augmentation", "loss", "optimizer", "scheduler", "weight_averaging", "precision", "trainer",
    "tta",
)  # fmt: skip


def fingerprint(config: DictConfig, dataset_hash: str, sources: SourceTree | None = None) -> str:
    """16 hexadecimal digits that stand for the choices, the data, the code and the packages of a training.

    The code is that of this process, unless other `sources` are given.
    """
    values = {key: result_config(config)[key] for key in FINGERPRINT_KEYS}
    used = (sources or loaded_sources()).used("train", target_names(values))
    return digest(
        {
            "values": values,
            "data": dataset_hash,
            "code": used.hashes,
            "versions": versions("train", used.packages),
            "variables": variables(),
        }
    )


def digest(content: Any) -> str:
    """16 hexadecimal digits that stand for nested values."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
