"""What a network looked at, as a picture: the pixels that speak for its answer and those that speak against it."""

from dataclasses import dataclass

import numpy as np

from cifar_pipeline.reporting.mosaic import as_colour

FOR, AGAINST = np.array([245, 120, 20]), np.array([20, 120, 220])
# Brightness of the red, green and blue of a picture (ITU-R BT.601).
BRIGHTNESS = np.array([0.299, 0.587, 0.114])
# Stronger pixels than all but so many hundredths are drawn alike: a single one would make the others pale.
STRONGEST = 98.0


@dataclass(frozen=True)
class Attributions:
    """How much each pixel of some images speaks for the answer: `values` is `[M, H, W] float`, `places` says whose.

    There are no values where no gradient comes from the network's answers to the pixels.
    """

    places: np.ndarray
    values: np.ndarray | None

    @property
    def why_none(self) -> str:
        """Why there is nothing to see; empty where there is."""
        if not len(self.places):
            return "No picture was asked for (evaluate.attributions)."
        return "" if self.values is not None else "No gradient comes from this network's answers to the pixels."


def evidence(pictures: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Lay `values` over pictures that are turned to faint grey: orange for the answer, blue against it.

    Args:
        pictures: `[N, H, W, 1 or 3] uint8`.
        values: `[N, H, W] float`, positive where a pixel speaks for the answer; each picture has its own scale.

    Returns:
        `[N, H, W, 3] uint8`.
    """
    grey = (as_colour(pictures) @ BRIGHTNESS)[..., None]
    faint = 75 + 0.45 * grey
    scale = np.percentile(np.abs(values), STRONGEST, axis=(1, 2), keepdims=True)
    strength = np.clip(np.abs(values) / np.where(scale > 0, scale, 1), 0, 1)[..., None]
    colour = np.where(values[..., None] > 0, FOR, AGAINST)
    return np.asarray(np.round(faint + strength * (colour - faint)), dtype=np.uint8)
