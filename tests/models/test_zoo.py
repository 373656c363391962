"""Test the networks of torchvision and timm with stems adapted to small images."""

import pytest
import torch
from torch import nn

from cifar_pipeline.models.zoo import timm_network, torchvision_network
from cifar_pipeline.utils.errors import UserError

NAMES = ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5"]


def first_convolution(net: nn.Module) -> nn.Conv2d:
    return next(module for module in net.modules() if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("channels", "size", "classes"), [(3, 32, 10), (1, 28, 7)])
def test_the_first_convolution_keeps_the_size_of_small_images(
    name: str, channels: int, size: int, classes: int
) -> None:
    net = torchvision_network(channels, size, classes, name)
    assert (first_convolution(net).in_channels, first_convolution(net).stride) == (channels, (1, 1))
    assert net(torch.randn(2, channels, size, size)).shape == (2, classes)


def test_resnet_has_the_stem_that_is_usual_for_cifar() -> None:
    net = torchvision_network(3, 32, 10, "resnet18")
    assert isinstance(net.maxpool, nn.Identity)
    assert (net.conv1.kernel_size, net.conv1.padding, net.conv1.bias) == ((3, 3), (1, 1), None)
    assert net.layer1(net.conv1(torch.randn(1, 3, 32, 32))).shape == (1, 64, 32, 32)
    assert sum(parameter.numel() for parameter in net.parameters()) == 11_173_962  # as published for CIFAR-10


def test_the_stem_is_unchanged_for_large_images() -> None:
    net = torchvision_network(3, 96, 10, "resnet18")
    assert first_convolution(net).kernel_size == (7, 7) and isinstance(net.maxpool, nn.MaxPool2d)
    assert first_convolution(torchvision_network(1, 96, 10, "resnet18")).in_channels == 1


@pytest.mark.parametrize(("size", "patches"), [(32, 8 * 8), (96, 6 * 6)])
def test_a_vision_transformer_cuts_small_patches_of_small_images(size: int, patches: int) -> None:
    net = torchvision_network(3, size, 10, "vit_b_16")
    assert net.encoder.pos_embedding.shape[1] == patches + 1


def test_a_network_of_timm_takes_small_gray_images() -> None:
    net = timm_network(1, 28, 7, "resnet10t")
    assert first_convolution(net).stride == (1, 1)
    assert net(torch.randn(2, 1, 28, 28)).shape == (2, 7)


@pytest.mark.parametrize(
    ("build", "name", "message"),
    [
        (torchvision_network, "resnet81", "Did you mean resnet18"),
        (timm_network, "resnet81", "Did you mean resnet"),
        (
            timm_network,
            "vit_tiny_patch16_224",
            r"does not accept images of 32x32 with 3 channels .*\. It accepts 224x224: set model.input_size=224",
        ),
        (torchvision_network, "fcn_resnet50", "no classification network"),
    ],
)
def test_an_unsuitable_name_is_refused(build: object, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(3, 32, 10, name)  # type: ignore[operator]


@pytest.mark.long
def test_every_network_of_torchvision_but_one_takes_cifar() -> None:
    from torchvision import models

    # More than a hundred million parameters would take too much memory.
    large = (
        "regnet_y_128gf",
        "vit_h_14",
        "vit_l_16",
        "vit_l_32",
        "convnext_large",
        "regnet_y_32gf",
        "efficientnet_v2_l",
    )
    for name in models.list_models(module=models):
        if name not in (*large, "maxvit_t"):
            assert torchvision_network(3, 32, 10, name)(torch.randn(2, 3, 32, 32)).shape == (2, 10), name
