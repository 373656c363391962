"""What stands before every network: raw pixels become normalised input, on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cifar_pipeline.console import Refusal

WHITE = 255


class RawPixels(nn.Module):
    """A network that takes pictures as they are stored: `[N, H, W, C] uint8` in, logits `[N, K]` out.

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
            raise Refusal(f"normalize.std={std} must be positive in every channel: write normalize=half or your own.")
        if 1 not in (len(centre), len(spread)) and len(centre) != len(spread):
            raise Refusal(f"normalize.mean={mean} and normalize.std={std} must have as many numbers as each other.")
        self.net = net
        # (x / 255 - mean) / std as one multiplication and one addition: at batch 4 each operation's overhead counts.
        self.register_buffer("scale", (1 / (WHITE * spread)).to(torch.get_default_dtype()))
        self.register_buffer("shift", (-centre / spread).to(torch.get_default_dtype()))

    def normalise(self, images: Tensor) -> Tensor:
        """Normalised images `[N, C, H, W] float` of raw pictures `[N, H, W, C] uint8`; channels_last in memory."""
        # Before permuting, while the channels are last, so that one number a channel broadcasts without a reshape.
        pixels = torch.addcmul(self.shift, images.to(self.scale.dtype), self.scale)
        return pixels.permute(0, 3, 1, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, K]` of raw pictures `[N, H, W, C] uint8`."""
        logits: Tensor = self.net(self.normalise(images))
        return logits


def _per_channel(numbers: float | Sequence[float]) -> Tensor:
    """`[1]` or `[C]`, in double precision until both numbers are folded."""
    channels = [numbers] if isinstance(numbers, int | float) else list(numbers)
    return torch.tensor(channels, dtype=torch.float64)
