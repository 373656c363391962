"""Keep a network's weights as a safetensors file, named as the network's own code names them.

A torch network's answers for many images, in portions that fit into memory.

What a model's answers rest on: how much each pixel speaks for the class that was named.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from cifar_pipeline.models.wrappers import NormalizedModel, TestTimeAugmentation
from cifar_pipeline.utils.console import progress_bar
from cifar_pipeline.utils.errors import UserError


def save_weights(net: nn.Module, path: Path) -> None:
    """Write the state dict of `net` (a `RawPixels`), without the views around it, to `path`."""
    # Copies, because safetensors refuses tensors that share memory.
    save_file({name: value.detach().cpu().clone().contiguous() for name, value in _named(net).items()}, str(path))


def load_weights(net: nn.Module, content: bytes, path: Path) -> None:
    """Put the weights that `save_weights` wrote into a network of the same configuration.

    `content` is that of the file at `path`, which the message names.

    Raises:
        Refusal: it is damaged, or it holds another network's weights.
    """
    try:
        weights = load(content)
    except SafetensorError as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"{path} can't be read ({reason}): `dvc repro -f train` makes it again.") from None
    named = _named(net)
    if {name: value.shape for name, value in weights.items()} != {name: value.shape for name, value in named.items()}:
        raise UserError(
            f"{path} holds the weights of another network than conf/ and params.yaml describe: `dvc repro train` "
            "trains that one."
        )
    with torch.no_grad():
        for name, value in named.items():
            value.copy_(weights[name])


def _named(net: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network by their names, which are the same with and without views."""
    assert isinstance(net, NormalizedModel)
    inner = net.net.net if isinstance(net.net, TestTimeAugmentation) else net.net
    state: dict[str, Tensor] = {f"net.{name}": value for name, value in inner.state_dict().items()}
    return {"scale": net.scale, "shift": net.shift, **state}


def predict_logits(
    model: nn.Module,
    images: np.ndarray,
    batch_size: int,
    advance: Callable[[float], None] = lambda _: None,
    device: str = "cpu",
) -> Tensor:
    """Logits `[N, K] float32`, on the CPU, of raw images `[N, H, W, C] uint8`, which may be memory-mapped.

    `model` is on `device`. `advance` is told how many more have been looked at.
    """
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            parts.append(model(torch.from_numpy(np.ascontiguousarray(part)).to(device)).float().cpu())
            advance(len(part))
    return torch.cat(parts)


WHITE = 255
# Of the sum over the way from the baseline to the image (Gauss-Legendre); the network looks at so many at once.
STEPS = 64


def attributions(
    model: nn.Module,
    probabilities: Callable[[Tensor], Tensor],
    images: np.ndarray,
    classes: np.ndarray,
    colour: Sequence[float],
) -> np.ndarray | None:
    """Integrated gradients of each image's probability of its class, summed over the channels.

    M. Sundararajan, A. Taly, Q. Yan, "Axiomatic Attribution for Deep Networks", 2017. An image's values add up to its
    probability less that of the baseline, an image of nothing but `colour`. Normalisation acts pixel by pixel, so that
    raw pixels have the same values as normalised ones.

    Args:
        model: raw images to logits, a network of our own code.
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
    with progress_bar("Looking into answers", len(pictures), transient=True) as advance:
        for image, number in zip(pictures, classes, strict=True):
            found.append(gradients.attribute(image[None], baseline, target=int(number), n_steps=STEPS).sum(dim=3))
            advance(1)
    values: np.ndarray = torch.cat(found).detach().float().numpy()
    return values
