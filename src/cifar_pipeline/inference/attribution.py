"""What a model's answers rest on: how much each pixel speaks for the class that was named."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from cifar_pipeline.console import progress

WHITE = 255
# Of the sum over the way from the baseline to the picture (Gauss-Legendre); the network looks at so many at once.
STEPS = 64


def attributions(
    model: nn.Module,
    probabilities: Callable[[Tensor], Tensor],
    images: np.ndarray,
    classes: np.ndarray,
    colour: Sequence[float],
) -> np.ndarray | None:
    """Integrated gradients of each picture's probability of its class, summed over the channels.

    M. Sundararajan, A. Taly, Q. Yan, "Axiomatic Attribution for Deep Networks", 2017. A picture's values add up to its
    probability less that of the baseline, a picture of nothing but `colour`. Normalisation acts pixel by pixel, so that
    raw pixels have the same values as normalised ones.

    Args:
        model: raw pictures to logits, a network of our own code.
        probabilities: the way from logits to probabilities.
        images: `[N, H, W, C] uint8`.
        classes: `[N] int`, whose probability is looked at.
        colour: of the baseline, in [0, 1]; a number a channel.

    Returns:
        `[N, H, W] float32`; None where no gradient comes from the answers to the pixels.
    """
    # Imported here, because it brings pyplot along, which takes a second.
    from captum.attr import IntegratedGradients

    def answer(pictures: Tensor) -> Tensor:
        return probabilities(model(pictures))

    pictures = torch.from_numpy(np.ascontiguousarray(images)).float()
    if not len(pictures) or not answer(pictures[:1].requires_grad_()).requires_grad:
        return None
    baseline = torch.tensor(colour, dtype=torch.float32).mul(WHITE).expand(1, *pictures.shape[1:])
    gradients, found = IntegratedGradients(answer), []
    with progress("Looking into answers", len(pictures), transient=True) as advance:
        for picture, number in zip(pictures, classes, strict=True):
            found.append(gradients.attribute(picture[None], baseline, target=int(number), n_steps=STEPS).sum(dim=3))
            advance(1)
    values: np.ndarray = torch.cat(found).detach().float().numpy()
    return values
