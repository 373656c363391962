"""Use a trained network with torch: save and load its weights, compute logits and attributions."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from cifar_pipeline.utils.console import progress_bar


def predict_logits(
    model: nn.Module,
    images: np.ndarray,
    batch_size: int,
    on_progress: Callable[[float], None] = lambda _: None,
    device: str = "cpu",
) -> Tensor:
    """Compute logits `[N, K] float32`, returned on the CPU, of raw images `[N, H, W, C] uint8`.

    The images may be memory-mapped. `model` is on `device`. `on_progress` is called with the number of images of each
    batch.
    """
    logits = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size])).to(device)
            logits.append(model(batch).float().cpu())
            on_progress(len(batch))
    return torch.cat(logits)


WHITE = 255
# Steps of the path from the baseline to the image (Gauss-Legendre quadrature), which form one batch.
STEPS = 64


def attributions(
    model: nn.Module,
    activation: Callable[[Tensor], Tensor],
    images: np.ndarray,
    classes: np.ndarray,
    baseline_color: Sequence[float],
) -> np.ndarray | None:
    """Compute integrated gradients of each image's probability of a class, summed over the channels.

    M. Sundararajan, A. Taly, Q. Yan, "Axiomatic Attribution for Deep Networks", 2017. An image's values add up to its
    probability minus that of the baseline, an image of one color. Normalization is linear in each pixel, so that raw
    pixels have the same attributions as normalized ones.

    Args:
        model: maps raw images to logits.
        activation: maps logits to probabilities.
        images: `[N, H, W, C] uint8`.
        classes: `[N] int`, the class of each image to attribute.
        baseline_color: one number in [0, 1] per channel.

    Returns:
        `[N, H, W] float32`; None if the probabilities are not differentiable by the pixels.
    """
    # Imported here, because it imports pyplot, which takes a second.
    from captum.attr import IntegratedGradients

    def predict(inputs: Tensor) -> Tensor:
        return activation(model(inputs))

    inputs = torch.from_numpy(np.ascontiguousarray(images)).float()
    if not len(inputs) or not predict(inputs[:1].requires_grad_()).requires_grad:
        return None
    baseline = torch.tensor(baseline_color, dtype=torch.float32).mul(WHITE).expand(1, *inputs.shape[1:])
    method, maps = IntegratedGradients(predict), []
    with progress_bar("Computing attributions", len(inputs), transient=True) as advance:
        for image, index in zip(inputs, classes, strict=True):
            maps.append(method.attribute(image[None], baseline, target=int(index), n_steps=STEPS).sum(dim=3))
            advance(1)
    values: np.ndarray = torch.cat(maps).detach().float().numpy()
    return values
