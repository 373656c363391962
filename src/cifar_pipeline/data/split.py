"""Which images are held back: drawn at random, evenly from every class, the same ones for the same seed."""

import numpy as np
from numpy.typing import NDArray

from cifar_pipeline.console import Refusal
from cifar_pipeline.data.official import Labels

Indices = NDArray[np.int64]


def stratified_split(labels: Labels, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Split `labels` `[N] int64` into what stays and what is held back, as two ascending arrays of indices.

    `fraction` of each class is held back, to the nearest image, so that their sum is `fraction` of all; 0 holds nothing
    back. Raises Refusal for a fraction that is not in [0, 1) or leaves a class without images on one side.
    """
    if not 0 <= fraction < 1:
        raise Refusal(f"A fraction of {fraction:g} cannot be held back: write a number from 0 up to, not including, 1.")
    held = np.zeros(len(labels), bool)
    if fraction > 0:
        classes, counts = np.unique(labels, return_counts=True)
        # RandomState's stream is frozen (NEP 19): the same images are held back whatever the version of NumPy.
        random = np.random.RandomState(seed)
        for label, count, share in zip(classes, counts, _shares(counts, fraction), strict=True):
            if not 0 < share < count:
                raise Refusal(
                    f"Holding back {fraction:g} of the images leaves class {label} with {count - share} of its {count}"
                    f" images and {share} held back: choose a fraction that leaves some on both sides, or 0."
                )
            held[random.permutation(np.flatnonzero(labels == label))[:share]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _shares(counts: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    """How many images of each class: rounded by largest remainder, so that the sum is right as well."""
    exact = counts * fraction
    shares: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    left = round(float(exact.sum())) - int(shares.sum())
    shares[np.argsort(-(exact - shares), kind="stable")[:left]] += 1
    return shares
