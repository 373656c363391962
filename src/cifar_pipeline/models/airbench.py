"""A network of the airbench family: a fixed whitening layer, then few wide convolutions with batch norm.

K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, after T. Gale, D. Page and others' ResNet-9.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu, max_pool2d

from cifar_pipeline.utils.errors import UserError

PATCH, POOL = 2, 2


class AirbenchNet(nn.Module):
    """Whitened patches, a stage for each width, the largest value of each channel, one linear layer.

    Normalised images `[N, channels, size, size]` to logits `[N, classes]`. The whitening layer has a filter for each
    principal component of the training images' patches, and one for its negative, so that nothing is lost in the
    activation; `initialize` computes them, and no optimizer changes them.

    Args:
        channels: of the images.
        size: height and width of the images.
        classes: how many there are.
        widths: channels of each stage; a stage halves height and width.
        depth: convolutions in a stage. From 3 on, those after the first learn what to add to its output.
        norm_momentum: how much a batch counts in the running mean and variance that are used after the training.

    Raises:
        Refusal: there are no widths, or the images are too small to be halved by each stage.
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
            raise UserError("model.widths=[] makes no network: write at least one number of channels.")
        smallest = POOL ** len(widths) + PATCH - 1
        if size < smallest:
            raise UserError(
                f"model.widths={list(widths)} needs images of at least {smallest}x{smallest} pixels, and these are "
                f"{size}x{size}: write fewer widths, or choose another model."
            )
        components = channels * PATCH**2
        self.register_buffer("whitening", torch.empty(2 * components, channels, PATCH, PATCH))
        nn.init.dirac_(self.whitening)
        self.whitening_bias = nn.Parameter(torch.zeros(2 * components))
        pairs = pairwise([2 * components, *widths])
        self.stages = nn.Sequential(*(Stage(before, width, depth, norm_momentum) for before, width in pairs))
        self.head = nn.Linear(widths[-1], classes, bias=False)
        # With the logits' scale below, a step of a given size moves the logits equally far whatever the width.
        self.scale = widths[-1] ** -0.5
        nn.init.normal_(self.head.weight, std=self.scale)

    def initialize(self, images: Tensor) -> None:
        """Compute the whitening filters of normalised images `[N, channels, size, size]`.

        A filter is an eigenvector of the patches' covariance, divided by the root of its eigenvalue: its answers have
        variance 1, and are not correlated with those of the others.
        """
        channels = images.shape[1]
        patches = nn.functional.unfold(images, PATCH).transpose(1, 2).reshape(-1, channels * PATCH**2).double()
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        # Without the small number, the directions in which images hardly differ would be all noise.
        filters = directions.T / (variances + 5e-4).sqrt().unsqueeze(1)
        self.whitening.copy_(torch.cat([filters, -filters]).view_as(self.whitening))

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, classes]` of normalised images `[N, channels, size, size]`."""
        features = gelu(conv2d(images, self.whitening, self.whitening_bias))
        features = self.stages(features)
        logits: Tensor = self.head(features.amax((2, 3))) * self.scale
        return logits


class Stage(nn.Module):
    """`depth` convolutions of 3x3, the first followed by a pooling; each with batch norm and GELU."""

    def __init__(self, before: int, width: int, depth: int, norm_momentum: float) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(_convolution(before if i == 0 else width, width) for i in range(depth))
        self.norms = nn.ModuleList(BiasOnlyBatchNorm2d(width, momentum=norm_momentum) for _ in range(depth))
        self.adds = depth > 2

    def forward(self, features: Tensor) -> Tensor:
        """`[N, before, H, W]` to `[N, width, H // 2, W // 2]`."""
        first, *others = zip(self.convolutions, self.norms, strict=True)
        convolution, norm = first
        features = gelu(norm(max_pool2d(convolution(features), POOL)))
        kept = features
        for number, (convolution, norm) in enumerate(others, 2):
            features = norm(convolution(features))
            if self.adds and number == len(self.norms):
                features = features + kept
            features = gelu(features)
        return features


class BiasOnlyBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that learns a shift alone: the next convolution would undo a scale."""

    def __init__(self, width: int, momentum: float) -> None:
        super().__init__(width, momentum=momentum)
        del self.weight
        self.register_buffer("weight", torch.ones(width))


def _convolution(before: int, width: int) -> nn.Conv2d:
    """A convolution that passes its input's channels on unchanged at first, as far as it has filters for them."""
    convolution = nn.Conv2d(before, width, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(convolution.weight[:before])
    return convolution
