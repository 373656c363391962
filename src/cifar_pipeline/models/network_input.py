"""Describe the images that a network sees, which may differ from those of the dataset. Imports no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# Most pixels of a batch that is not trained on: 4,096 images of 32 x 32, or 83 of 224 x 224. EfficientNet-Lite0 then
# needs less than 1 GB.
MAX_BATCH_PIXELS = 1 << 22


@dataclass(frozen=True)
class NetworkInput:
    """What a network is built for besides its configuration and the dataset's classes.

    Attributes:
        size: height and width in pixels that the network sees.
        channels: color channels that the network sees.
        is_pretrained: whether the network keeps the first layers that its library gives it, as published weights need.
        crop: height and width in pixels of the central square of the dataset's images that is resized to `size`; None:
            the whole image.
    """

    size: int
    channels: int
    is_pretrained: bool
    crop: int | None = None

    def limit_batch(self, batch_size: int) -> int:
        """Return how many images can go through the network at once without a gradient, at most `batch_size`."""
        return max(1, min(batch_size, MAX_BATCH_PIXELS // self.size**2))

    @staticmethod
    def read(metadata: Mapping[str, Any], shape: tuple[int, int, int]) -> "NetworkInput":
        """Read what a model's metadata record, for images of `shape` `(H, W, C)`.

        Older models record nothing: their networks see the images as they are.
        """
        values = metadata.get("network") or asdict(NetworkInput(shape[0], shape[2], False))
        return NetworkInput(
            int(values["size"]), int(values["channels"]), bool(values["is_pretrained"]), values.get("crop")
        )
