"""A small model as a training leaves it, and pictures to ask it about."""

from typing import Any

import numpy as np
import torch

from cifar_pipeline.models.lenet import LeNet
from cifar_pipeline.models.pixels import RawPixels

SHAPE, CLASSES = (32, 32, 3), ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def network() -> RawPixels:
    torch.manual_seed(0)
    return RawPixels(LeNet(channels=3, size=32, classes=len(CLASSES)), mean=0.5, std=0.5).to(
        memory_format=torch.channels_last
    )


def facts(**others: Any) -> dict[str, Any]:
    """A training's facts."""
    return {
        "identity": "0123456789abcdef",
        "commit": "c0ffee1" + 33 * "0",
        "dataset": {"name": "drawn", "hash": 64 * "d"},
        "classes": list(CLASSES),
        "shape": list(SHAPE),
        "fit": "crop",
        "probabilities": "softmax",
        **others,
    }


def pictures(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (number, *SHAPE), np.uint8)
