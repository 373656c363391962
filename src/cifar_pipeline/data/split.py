"""Which images are held back: drawn at random, evenly from every class, the same ones for the same seed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cifar_pipeline.console import Refusal
from cifar_pipeline.data.official import Indices, Labels, Official

SHOWN = 10


def parted(official: Official, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """The training images to learn from and those to choose by, as two ascending arrays of indices.

    The source's own choice where it has one, else `stratified_split` of `data.val_fraction`.
    """
    labels, held_back = official.train_labels, official.held_back
    if held_back is None:
        return stratified_split(labels, fraction, seed, official.classes, "data.val_fraction")
    return np.setdiff1d(np.arange(len(labels)), held_back), held_back


def require_usable(official: Official, train: Indices, title: str) -> None:
    """Refuse data that no network can learn from or be measured by; `train` are the images to learn from.

    Raises Refusal where there are fewer than two classes, two of one name, a class without a training image, or no
    test images.
    """
    classes = official.classes
    twice = sorted({name for name in classes if classes.count(name) > 1})
    if twice:
        raise Refusal(f"{title} has two classes called {twice[0]}: a source must give each class a name of its own.")
    if len(classes) < 2:
        raise Refusal(f"{title} has {len(classes)} class: at least two are needed.")
    counts = np.bincount(official.train_labels[train], minlength=len(classes))
    untrained = [classes[number] for number in np.flatnonzero(counts == 0)]
    if untrained:
        more = f" and {len(untrained) - SHOWN:,} more" if len(untrained) > SHOWN else ""
        raise Refusal(f"{title} has no training images of {', '.join(untrained[:SHOWN])}{more}: each class needs some.")
    if not len(official.test_labels):
        raise Refusal(f"{title} has no test images: `evaluate` needs some to measure by.")


def stratified_split(
    labels: Labels, fraction: float, seed: int, classes: Sequence[str] = (), option: str = "the fraction"
) -> tuple[Indices, Indices]:
    """Split `labels` `[N] int64` into what stays and what is held back, as two ascending arrays of indices.

    `fraction` of each class is held back, to the nearest image, so that their sum is `fraction` of all, and of each
    class at least one image and not all; 0 holds nothing back. `classes` are the names, `option` what sets the
    fraction, for the sentences. Raises Refusal for a fraction that is not in [0, 1), and for a class of one image.
    """
    if not 0 <= fraction < 1:
        raise Refusal(f"A fraction of {fraction:g} cannot be held back: write a number from 0 up to, not including, 1.")
    held = np.zeros(len(labels), bool)
    if fraction > 0:
        present, counts = np.unique(labels, return_counts=True)
        single = [str(classes[label] if classes else label) for label in present[counts < 2]]
        if single:
            raise Refusal(
                f"Of class {', '.join(single)} there is a single image left, which can't be both learnt and held back: "
                f"add some, leave the class out, or set {option} to 0."
            )
        # RandomState's stream is frozen (NEP 19): the same images are held back whatever the version of NumPy.
        random = np.random.RandomState(seed)
        for label, share in zip(present, _shares(counts, fraction), strict=True):
            held[random.permutation(np.flatnonzero(labels == label))[:share]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _shares(counts: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    """How many images of each class: rounded by largest remainder, so that the sum is right as well; never 0 or all."""
    exact = counts * fraction
    shares: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    left = round(float(exact.sum())) - int(shares.sum())
    shares[np.argsort(-(exact - shares), kind="stable")[:left]] += 1
    return np.clip(shares, 1, counts - 1)
