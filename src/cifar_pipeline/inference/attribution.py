"""What a model's answers rest on: how much each pixel speaks for the class that was named."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from cifar_pipeline.console import progress

WHITE = 255
# Of the sum over the way from the baseline to the picture (Gauss-Legendre); the network looks at so many at once.
STEPS = 64
# Of a loaded model: what refuses pictures that are not uint8.
CHECKS = (torch.ops.aten._assert_tensor_metadata.default, "_guards_fn")


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
        model: raw pictures to logits, as `load_model` gives it.
        probabilities: the way from logits to probabilities.
        images: `[N, H, W, C] uint8`.
        classes: `[N] int`, whose probability is looked at.
        colour: of the baseline, in [0, 1]; a number a channel.

    Returns:
        `[N, H, W] float32`; None where no gradient comes from the answers to the pixels.
    """
    # Imported here, because it brings pyplot along, which takes a second.
    from captum.attr import IntegratedGradients

    network = on_floats(model)

    def answer(pictures: Tensor) -> Tensor:
        return probabilities(network(pictures))

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


def on_floats(model: nn.Module) -> nn.Module:
    """The same network for pictures `[N, H, W, C] float` from 0 to 255, through which gradients come to the pixels."""
    if not isinstance(model, GraphModule):
        return model
    graph = copy.deepcopy(model.graph)
    for node in list(graph.nodes):
        if node.target in CHECKS:
            graph.erase_node(node)
    return GraphModule(model, graph)
