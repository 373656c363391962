"""The network of PyTorch's classic tutorial."""

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from cifar_pipeline.utils.errors import UserError

KERNEL, POOL, FILTERS = 5, 2, (6, 16)


class LeNet(nn.Module):
    """Two convolutions and three linear layers: normalised images `[N, channels, size, size]` to logits `[N, classes]`.

    The layers and their names are those of PyTorch's tutorial "Training a Classifier", so weights that were saved there
    load here. It follows LeNet-5 (Y. LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998).

    Raises:
        Refusal: the images are too small to survive both convolutions and both poolings.
    """

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, FILTERS[0], KERNEL)
        self.conv2 = nn.Conv2d(FILTERS[0], FILTERS[1], KERNEL)
        self.fc1 = nn.Linear(FILTERS[1] * _feature_size(size) ** 2, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, classes]` of normalised images `[N, channels, size, size]`."""
        # Pooled before what is negative is cut off: the result is the same to the bit, and there is a quarter to cut.
        features = torch.relu(max_pool2d(self.conv1(images), POOL))
        features = torch.relu(max_pool2d(self.conv2(features), POOL))
        features = torch.flatten(features, 1)
        features = torch.relu(self.fc1(features))
        features = torch.relu(self.fc2(features))
        logits: Tensor = self.fc3(features)
        return logits


def _feature_size(size: int) -> int:
    """Height and width of the second pooling's output, for images of this height and width."""
    side = size
    for _ in FILTERS:
        side = (side - KERNEL + 1) // POOL
    if side < 1:
        smallest = 1
        for _ in FILTERS:
            smallest = smallest * POOL + KERNEL - 1
        raise UserError(
            f"model=lenet needs images of at least {smallest}x{smallest} pixels, and these are {size}x{size}: "
            "choose another model, or data with larger images."
        )
    return side
