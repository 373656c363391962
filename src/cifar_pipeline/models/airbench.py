"""Define the airbench network: a fixed whitening layer, then a few wide convolutions with batch norm.

K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, derived from the ResNet-9 of D. Page and others.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu, max_pool2d

from cifar_pipeline.utils.errors import UserError

PATCH, POOL = 2, 2


class AirbenchNet(nn.Module):
    """Map normalized images `[N, channels, size, size]` to logits `[N, classes]`.

    Layers: whitening of 2x2 patches, one stage per width, global max pooling, a linear layer. The whitening layer has
    one filter for each principal component of the training images' patches, and one for its negative, because the
    activation would drop one sign. `initialize` computes the filters; they are not trained.

    Args:
        channels: number of channels of the images.
        size: height and width of the images.
        classes: number of classes.
        widths: channels of each stage; a stage halves height and width.
        depth: convolutions per stage; 3 or more add a residual connection around those after the first.
        norm_momentum: weight of a batch in the running mean and variance, which evaluation uses.

    Raises:
        UserError: there are no widths, or the images are too small to be halved by each stage.
    """

    whitening: Tensor

    def __init__(
        self,
        channels: int,
        size: int,
        classes: int,
        widths: Sequence[int] = (64, 256, 256),
        depth: int = 2,
        norm_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        if not widths:
            raise UserError("model.widths=[] has no stage. Write at least one number of channels.")
        min_size = POOL ** len(widths) + PATCH - 1
        if size < min_size:
            raise UserError(
                f"model.widths={list(widths)} needs images of at least {min_size}x{min_size} pixels, but these are "
                f"{size}x{size}. Write fewer widths or choose another model."
            )
        components = channels * PATCH**2
        self.register_buffer("whitening", torch.empty(2 * components, channels, PATCH, PATCH))
        nn.init.dirac_(self.whitening)
        self.whitening_bias = nn.Parameter(torch.zeros(2 * components))
        pairs = pairwise([2 * components, *widths])
        self.stages = nn.Sequential(*(Stage(in_channels, width, depth, norm_momentum) for in_channels, width in pairs))
        self.head = nn.Linear(widths[-1], classes, bias=False)
        # Together with the scaling of the logits, the learning rate does not depend on the width.
        self.scale = widths[-1] ** -0.5
        nn.init.normal_(self.head.weight, std=self.scale)

    def initialize(self, images: Tensor) -> None:
        """Compute the whitening filters from normalized images `[N, channels, size, size]`.

        A filter is an eigenvector of the patches' covariance, divided by the square root of its eigenvalue: the outputs
        have variance 1 and are uncorrelated.
        """
        channels = images.shape[1]
        patches = nn.functional.unfold(images, PATCH).transpose(1, 2).reshape(-1, channels * PATCH**2).double()
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        # The constant keeps directions of almost no variance from being amplified to noise.
        filters = directions.T / (variances + 5e-4).sqrt().unsqueeze(1)
        self.whitening.copy_(torch.cat([filters, -filters]).view_as(self.whitening))

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits `[N, classes]` of normalized images `[N, channels, size, size]`."""
        features = gelu(conv2d(images, self.whitening, self.whitening_bias))
        features = self.stages(features)
        logits: Tensor = self.head(features.amax((2, 3))) * self.scale
        return logits


class Stage(nn.Module):
    """Apply `depth` 3x3 convolutions with batch norm and GELU; max pooling follows the first."""

    def __init__(self, in_channels: int, width: int, depth: int, norm_momentum: float) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(_convolution(in_channels if i == 0 else width, width) for i in range(depth))
        self.norms = nn.ModuleList(BiasOnlyBatchNorm2d(width, momentum=norm_momentum) for _ in range(depth))
        self.has_residual = depth > 2

    def forward(self, features: Tensor) -> Tensor:
        """Map `[N, in_channels, H, W]` to `[N, width, H // 2, W // 2]`."""
        first, *others = zip(self.convolutions, self.norms, strict=True)
        convolution, norm = first
        features = gelu(norm(max_pool2d(convolution(features), POOL)))
        residual = features
        for number, (convolution, norm) in enumerate(others, 2):
            features = norm(convolution(features))
            if self.has_residual and number == len(self.norms):
                features = features + residual
            features = gelu(features)
        return features


class BiasOnlyBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that learns a bias but no scale, which the next convolution could undo."""

    def __init__(self, width: int, momentum: float) -> None:
        super().__init__(width, momentum=momentum)
        del self.weight
        self.register_buffer("weight", torch.ones(width))


def _convolution(in_channels: int, width: int) -> nn.Conv2d:
    """Make a 3x3 convolution whose first filters are initialized to the identity, one per input channel."""
    convolution = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(convolution.weight[:in_channels])
    return convolution
