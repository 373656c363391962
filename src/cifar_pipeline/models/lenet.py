"""Define the LeNet of PyTorch's tutorial "Training a Classifier"."""

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from cifar_pipeline.utils.errors import UserError

KERNEL, POOL, FILTERS = 5, 2, (6, 16)


class LeNet(nn.Module):
    """Map normalized images `[N, channels, size, size]` to logits `[N, classes]`.

    Two convolutions and three linear layers, named as in PyTorch's tutorial, so that weights saved there can be loaded.
    Derived from LeNet-5 (Y. LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998).

    Raises:
        UserError: the images are too small for both convolutions and poolings.
    """

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, FILTERS[0], KERNEL)
        self.conv2 = nn.Conv2d(FILTERS[0], FILTERS[1], KERNEL)
        self.fc1 = nn.Linear(FILTERS[1] * _feature_size(size) ** 2, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits `[N, classes]` of normalized images `[N, channels, size, size]`."""
        # Pooling before ReLU gives the same bits, with a quarter of the values left for ReLU.
        features = torch.relu(max_pool2d(self.conv1(images), POOL))
        features = torch.relu(max_pool2d(self.conv2(features), POOL))
        features = torch.flatten(features, 1)
        features = torch.relu(self.fc1(features))
        features = torch.relu(self.fc2(features))
        logits: Tensor = self.fc3(features)
        return logits


def _feature_size(size: int) -> int:
    """Return height and width of the second pooling's output. Raises `UserError` for images that are too small."""
    side = size
    for _ in FILTERS:
        side = (side - KERNEL + 1) // POOL
    if side < 1:
        min_size = 1
        for _ in FILTERS:
            min_size = min_size * POOL + KERNEL - 1
        raise UserError(
            f"model=lenet needs images of at least {min_size}x{min_size} pixels, but these are {size}x{size}. "
            "Choose another model or data with larger images."
        )
    return side
