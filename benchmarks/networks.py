"""The networks that are compared on both sides; each takes channels, size and classes as those of conf/model do."""

from torch import nn
from torchvision import models

from cifar_pipeline.models.airbench import AirbenchNet
from cifar_pipeline.models.lenet import LeNet

__all__ = ["AirbenchNet", "LeNet", "resnet18"]


def resnet18(channels: int, size: int, classes: int) -> nn.Module:
    """torchvision's ResNet-18 as it is, 11 million parameters; it takes three channels of any size."""
    if channels != 3:
        raise ValueError(f"ResNet-18 takes 3 channels, not {channels}")
    network: nn.Module = models.resnet18(num_classes=classes)
    return network
