"""Compute the fingerprint of a training: a hash of the config, data, code and packages that decide its result.

Trainings with the same fingerprint end with bit-identical weights on the same machine with the same number of threads.
The fingerprint names the checkpoint folder and the MLflow run, and a training that has finished is not repeated.
"""

import hashlib
import json
from typing import Any

from omegaconf import DictConfig

from cifar_pipeline.config.compose import result_config
from cifar_pipeline.config.source_files import SourceTree, loaded_sources, variables, versions
from cifar_pipeline.config.validation import target_names

# Keys of the configuration that decide a training's result; dvc.yaml lists the same keys for `train`.
FINGERPRINT_KEYS = (
    "seed", "model", "normalization", "augmentation", "loss", "optimizer", "scheduler", "weight_averaging", "precision",
    "trainer", "tta",
)  # fmt: skip


def fingerprint(config: DictConfig, dataset_hash: str, sources: SourceTree | None = None) -> str:
    """Return 16 hexadecimal digits that identify a training's configuration, data, code and packages.

    Args:
        config: the composed configuration.
        dataset_hash: the hash in dataset.json.
        sources: the code; None means the code of this process.
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
    """Return 16 hexadecimal digits of the SHA-256 of nested values."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
