"""A model's answers for many pictures, in portions that fit into memory."""

import numpy as np
import torch
from torch import Tensor, nn


def logits_of(model: nn.Module, images: np.ndarray, batch_size: int) -> Tensor:
    """Logits `[N, K] float32` of raw pictures `[N, H, W, C] uint8`, which may be memory-mapped."""
    with torch.inference_mode():
        parts = [
            model(torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size])))
            for start in range(0, len(images), batch_size)
        ]
    return torch.cat(parts)
