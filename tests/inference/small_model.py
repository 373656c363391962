"""Export a small model as a training does, and generate images for it."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cifar_pipeline.inference.onnx_export import OnnxTemplate, save_model
from cifar_pipeline.models.build import NormalizedModel
from cifar_pipeline.models.lenet import LeNet

SHAPE, CLASSES = (32, 32, 3), ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def network() -> NormalizedModel:
    torch.manual_seed(0)
    return NormalizedModel(LeNet(channels=3, size=32, classes=len(CLASSES)), mean=0.5, std=0.5).to(
        memory_format=torch.channels_last
    )


def training_metadata(**changes: Any) -> dict[str, Any]:
    """Return the metadata of a training."""
    return {
        "fingerprint": "0123456789abcdef",
        "commit": "c0ffee1" + 33 * "0",
        "dataset": {"name": "drawn", "hash": 64 * "d"},
        "classes": list(CLASSES),
        "shape": list(SHAPE),
        "resize_mode": "crop",
        "output_activation": "softmax",
        **changes,
    }


@cache
def graph() -> OnnxTemplate:
    """Export the graph of `network` once."""
    return OnnxTemplate.of(network(), SHAPE, "softmax")


def export(folder: Path, net: NormalizedModel | None = None, **changes: Any) -> Path:
    """Write a network's model folder as `train` does."""
    save_model(graph(), net or network(), training_metadata(**changes), folder)
    return folder


def random_images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *SHAPE), np.uint8)
