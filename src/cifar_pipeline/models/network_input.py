"""Describe the images that a network sees, which may differ from those of the dataset. Imports no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class NetworkInput:
    """What a network is built for besides its configuration and the dataset's classes.

    Attributes:
        size: height and width in pixels that the network sees.
        channels: color channels that the network sees.
        is_pretrained: whether the network keeps the first layers that its library gives it, as published weights need.
    """

    size: int
    channels: int
    is_pretrained: bool

    @staticmethod
    def read(metadata: Mapping[str, Any], shape: tuple[int, int, int]) -> "NetworkInput":
        """Read what a model's metadata record, for images of `shape` `(H, W, C)`.

        Older models record nothing: their networks see the images as they are.
        """
        values = metadata.get("network") or asdict(NetworkInput(shape[0], shape[2], False))
        return NetworkInput(int(values["size"]), int(values["channels"]), bool(values["is_pretrained"]))
