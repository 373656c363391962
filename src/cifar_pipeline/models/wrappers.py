"""What stands before every network: raw pixels become normalised input, on the device.

Several looks at an image, for a network that is trained already: the mean of its logits over all of them.

How a network's outputs become probabilities: each file in conf/loss/ names the way that fits its loss.

All take logits `[N, K]`, float32 or float64, and return probabilities `[N, K]` of the same type, each row summing to 1.
"""

from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from cifar_pipeline.utils.errors import UserError

WHITE = 255


class NormalizedModel(nn.Module):
    """A network that takes images as they are stored: `[N, H, W, C] uint8` in, logits `[N, K]` out.

    Args:
        net: takes normalised images `[N, C, H, W] float`.
        mean: subtracted from the pixels scaled to [0, 1]; one number, or one for each of the C channels.
        std: what they are then divided by; one number, or one for each channel.

    Raises:
        Refusal: a standard deviation is not positive, or mean and std are for different numbers of channels.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, net: nn.Module, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        centre, spread = _per_channel(mean), _per_channel(std)
        if not bool((spread > 0).all()):
            raise UserError(
                f"normalization.std={std} must be positive in every channel: write normalization=half or your own."
            )
        if 1 not in (len(centre), len(spread)) and len(centre) != len(spread):
            raise UserError(
                f"normalization.mean={mean} and normalization.std={std} must have as many numbers as each other."
            )
        self.net = net
        # (x / 255 - mean) / std as one multiplication and one addition: at batch 4 each operation's overhead counts.
        self.register_buffer("scale", (1 / (WHITE * spread)).to(torch.get_default_dtype()))
        self.register_buffer("shift", (-centre / spread).to(torch.get_default_dtype()))

    def normalize(self, images: Tensor) -> Tensor:
        """Normalised images `[N, C, H, W] float` of raw images `[N, H, W, C] uint8`; channels_last in memory."""
        # Before permuting, while the channels are last, so that one number a channel broadcasts without a reshape.
        pixels = torch.addcmul(self.shift, images.to(self.scale.dtype), self.scale)
        return pixels.permute(0, 3, 1, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, K]` of raw images `[N, H, W, C] uint8`."""
        logits: Tensor = self.net(self.normalize(images))
        return logits


def _per_channel(numbers: float | Sequence[float]) -> Tensor:
    """`[1]` or `[C]`, in double precision until both numbers are folded."""
    channels = [numbers] if isinstance(numbers, int | float) else list(numbers)
    return torch.tensor(channels, dtype=torch.float64)


class TestTimeAugmentation(nn.Module):
    """A network that answers for several views of an image: normalised `[N, C, H, W] float` to logits `[N, K]`.

    Args:
        net: what answers for one view.
        flip: whether the mirror image is looked at too.
        shift: by how many pixels the image is moved up and left and, once more, down and right, with the rim
            reflected; both together count as much as the unmoved one. 0: it is not moved.
        size: the smaller of the images' height and width.

    Raises:
        Refusal: the shift is not smaller than the images.
    """

    def __init__(self, net: nn.Module, flip: bool, shift: int, size: int) -> None:
        super().__init__()
        if shift >= size:
            raise UserError(f"tta.shift={shift} must be smaller than the images, which have {size} pixels.")
        self.net, self.flip, self.shift = net, flip, shift

    def forward(self, images: Tensor) -> Tensor:
        """The mean of the logits `[N, K]` over the views of `[N, C, H, W]`."""
        moved, weights = zip(*self._moved(images), strict=True)
        views, mirrors = list(moved), 1
        if self.flip:
            views, mirrors = [*moved, *(view.flip(3) for view in moved)], 2
        shares = images.new_tensor([weight / mirrors for weight in weights] * mirrors)
        # In one batch, so that an exported graph holds the network once.
        logits: Tensor = self.net(torch.cat(views))
        return (logits.reshape(len(views), -1, logits.shape[1]) * shares[:, None, None]).sum(0)

    def _moved(self, images: Tensor) -> Iterator[tuple[Tensor, float]]:
        """The views before any is mirrored, each with its weight."""
        if not self.shift:
            yield images, 1.0
            return
        far = 2 * self.shift
        padded = nn.functional.pad(images, [self.shift] * 4, mode="reflect")
        yield images, 0.5
        yield padded[:, :, far:, far:], 0.25
        yield padded[:, :, :-far, :-far], 0.25


def softmax(logits: Tensor) -> Tensor:
    """`p_k = exp(z_k) / sum_j exp(z_j)`: what cross-entropy is the likelihood of."""
    return torch.softmax(logits, dim=1)


def normalized_sigmoid(logits: Tensor) -> Tensor:
    """`p_k = s(z_k) / sum_j s(z_j)`, `s` the logistic sigmoid: for classes each trained against all others."""
    # The same quotient by way of logarithms: where every sigmoid underflows to 0, it would be 0 / 0.
    return torch.softmax(logsigmoid(logits), dim=1)


def clipped_linear(logits: Tensor) -> Tensor:
    """`p_k = max(z_k, 0) / sum_j max(z_j, 0)`, and 1/K where none is positive: for outputs that are votes already."""
    votes = logits.clamp(min=0)
    total = votes.sum(dim=1, keepdim=True)
    return torch.where(total > 0, votes / total.where(total > 0, 1), 1 / logits.shape[1])


OUTPUT_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    way.__name__: way for way in (softmax, normalized_sigmoid, clipped_linear)
}


def get_activation(name: str) -> Callable[[Tensor], Tensor]:
    """The way of this name.

    Raises:
        Refusal: there is none; the sentence names those there are, and the nearest.
    """
    if name not in OUTPUT_ACTIVATIONS:
        nearest = get_close_matches(name, OUTPUT_ACTIVATIONS, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else "."
        raise UserError(f"loss.output_activation={name} is not known: it can be {', '.join(OUTPUT_ACTIVATIONS)}{hint}")
    return OUTPUT_ACTIVATIONS[name]
