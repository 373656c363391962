"""A torch network's answers for many pictures, in portions that fit into memory."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn


def logits_of(
    model: nn.Module,
    images: np.ndarray,
    batch_size: int,
    advance: Callable[[float], None] = lambda _: None,
    device: str = "cpu",
) -> Tensor:
    """Logits `[N, K] float32`, on the CPU, of raw pictures `[N, H, W, C] uint8`, which may be memory-mapped.

    `model` is on `device`. `advance` is told how many more have been looked at.
    """
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            parts.append(model(torch.from_numpy(np.ascontiguousarray(part)).to(device)).float().cpu())
            advance(len(part))
    return torch.cat(parts)
