"""Networks of the benchmarks; each takes channels, size and classes like those of conf/model."""

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu
from torchvision import models

from cifar_pipeline.models import lenet
from cifar_pipeline.models.airbench import AirbenchNet
from cifar_pipeline.models.zoo import timm_network

__all__ = ["AirbenchNet", "LeNet", "efficientnet", "resnet18"]


class LeNet(lenet.LeNet):
    """LeNet as in the tutorial: ReLU before max pooling, which is slower than after it."""

    def forward(self, images: Tensor) -> Tensor:
        features = max_pool2d(relu(self.conv1(images)), 2)
        features = torch.flatten(max_pool2d(relu(self.conv2(features)), 2), 1)
        logits: Tensor = self.fc3(relu(self.fc2(relu(self.fc1(features)))))
        return logits


def resnet18(channels: int, size: int, classes: int) -> nn.Module:
    """Torchvision's ResNet-18, 11 million parameters, for 3 channels and any image size."""
    if channels != 3:
        raise ValueError(f"ResNet-18 takes 3 channels, not {channels}")
    network: nn.Module = models.resnet18(num_classes=classes)
    return network


def efficientnet(channels: int, size: int, classes: int) -> nn.Module:
    """Return the EfficientNet-Lite0 of model=timm without weights, whose stem keeps the size of small images."""
    return timm_network(channels, size, classes, "tf_efficientnet_lite0")
