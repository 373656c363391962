"""Keep a network's weights as a safetensors file, named as the network's own code names them."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from cifar_pipeline.console import Refusal
from cifar_pipeline.models.pixels import RawPixels
from cifar_pipeline.models.views import Views


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
        raise Refusal(f"{path} can't be read ({reason}): `dvc repro -f train` makes it again.") from None
    named = _named(net)
    if {name: value.shape for name, value in weights.items()} != {name: value.shape for name, value in named.items()}:
        raise Refusal(
            f"{path} holds the weights of another network than conf/ and params.yaml describe: `dvc repro train` "
            "trains that one."
        )
    with torch.no_grad():
        for name, value in named.items():
            value.copy_(weights[name])


def _named(net: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network by their names, which are the same with and without views."""
    assert isinstance(net, RawPixels)
    inner = net.net.net if isinstance(net.net, Views) else net.net
    state: dict[str, Tensor] = {f"net.{name}": value for name, value in inner.state_dict().items()}
    return {"scale": net.scale, "shift": net.shift, **state}
