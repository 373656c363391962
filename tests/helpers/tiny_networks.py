"""Make tiny networks of timm with random weights, and files of these, which tests load as pretrained ones."""

from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

# Convolutions with batch norm, 0.5 million parameters.
RESNET = "test_resnet"
# A transformer with position embeddings for images of 160 pixels, in patches of 16.
VIT = "test_vit"
# As many classes as a library's own weights may have, other than those of any test's data.
LIBRARY_CLASSES = 13


def tiny_network(name: str = RESNET, classes: int = LIBRARY_CLASSES, channels: int = 3, seed: int = 0) -> nn.Module:
    """Build a network with random weights, also in batch norm, whose weights are 0 in some layers of a new network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net: nn.Module = timm.create_model(name, num_classes=classes, in_chans=channels)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                nn.init.normal_(module.running_mean, 0, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.1)
    return net


def save_network(net: nn.Module, path: Path) -> dict[str, Tensor]:
    """Write the tensors of a network to a file of safetensors, or of torch, and return them."""
    state = {name: value.detach().clone().contiguous() for name, value in net.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(state, str(path))
    else:
        torch.save(state, path)
    return state


def options(path: Path, name: str = RESNET) -> list[str]:
    """Return the overrides that start a training with the weights of a file."""
    return ["model=timm", f"model.name={name}", f"model.weights={path}"]


def install_as_package(folder: Path, name: str = RESNET) -> list[str]:
    """Write an importable package with the published weights of a network, as model.weights=default finds them.

    `folder` has to be on Python's path. Returns the overrides that start a training with them.
    """
    package = f"weights_of_{name}"
    save_network(tiny_network(name), folder / package / "models" / f"{name}.pth")
    (folder / package / "__init__.py").touch()
    return [
        "model=timm",
        f"model.name={name}",
        "model.weights=default",
        f"++model.default_weights.packages.{name}={package}",
    ]
