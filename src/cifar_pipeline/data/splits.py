"""Split labelled images at random: by a fraction of each class, into folds, and without separating a group.

A group is what images have in common that makes them too similar to be in two splits, such as the patient.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from cifar_pipeline.data.sources.base import Indices, Labels, RawDataset
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import list_names

# Most folds from which a fraction of the groups is made up, unless the fraction is smaller than one of them.
MAX_PARTS = 20


def train_val_split(
    raw: RawDataset, fraction: float, seed: int, folds: int = 0, fold: int | None = None
) -> tuple[Indices, Indices]:
    """Split the training images into training and validation, as two ascending arrays of indices.

    The validation images are those of the source if it has its own, or number `fold` of `folds`, or else `fraction` of
    each class. Groups are kept together. Raises UserError for a fold of a source that has its own validation images.
    """
    labels, val = raw.train_labels, raw.val_indices
    everything = np.arange(len(labels))
    if val is not None:
        if fold is not None:
            raise UserError(
                f"data.fold={fold} divides the training images, but these data have a validation split of their own: "
                "set data.fold to null, or make the images of `val` training images."
            )
        return np.setdiff1d(everything, val), val
    if fold is not None:
        return fold_split(labels, folds, fold, seed, raw.classes, raw.train_groups)
    if raw.train_groups:
        return grouped_split(labels, raw.train_groups, fraction, seed, "data.val_fraction")
    return stratified_split(labels, fraction, seed, raw.classes, "data.val_fraction")


def stratified_split(
    labels: Labels, fraction: float, seed: int, classes: Sequence[str] = (), option: str = "the fraction"
) -> tuple[Indices, Indices]:
    """Split `labels` `[N] int64` at random into a large part and `fraction`, as two ascending arrays of indices.

    The second array has `fraction` of each class, rounded so that the sum is `fraction` of all, with at least one image
    of each class and not all of them; it is empty for 0. `classes` are the names and `option` the key of the fraction,
    for error messages. Raises UserError if the fraction is not in [0, 1) or a class has a single image.
    """
    _require_fraction(fraction, option)
    selected = np.zeros(len(labels), bool)
    if fraction > 0:
        present, counts = np.unique(labels, return_counts=True)
        single = [str(classes[label] if classes else label) for label in present[counts < 2]]
        if single:
            raise UserError(
                f"Class {list_names(single)} has a single image left, which cannot be in two splits: add images, "
                f"remove the class, or set {option} to 0."
            )
        # The stream of RandomState is frozen (NEP 19): the split does not depend on the version of NumPy.
        random = np.random.RandomState(seed)
        for label, count in zip(present, _per_class_counts(counts, fraction), strict=True):
            selected[random.permutation(np.flatnonzero(labels == label))[:count]] = True
    return np.flatnonzero(~selected), np.flatnonzero(selected)


def _per_class_counts(counts: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    """Return `fraction` of each count, rounded by largest remainder to keep the sum, and clipped to [1, count - 1]."""
    exact = counts * fraction
    result: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    remaining = round(float(exact.sum())) - int(result.sum())
    result[np.argsort(-(exact - result), kind="stable")[:remaining]] += 1
    return np.clip(result, 1, counts - 1)


def grouped_split(
    labels: Labels, groups: Sequence[str], fraction: float, seed: int, option: str
) -> tuple[Indices, Indices]:
    """Split `labels` `[N] int64` into a large part and about `fraction`, as two ascending arrays of indices.

    All images of a group, of which `groups` has the names, are in the same part, so the fraction is met only as far as
    the groups allow. It is made up of folds of scikit-learn's StratifiedGroupKFold.
    Raises UserError if the fraction is not in [0, 1) or there is a single group.
    """
    _require_fraction(fraction, option)
    if fraction == 0:
        return np.arange(len(labels)), np.arange(0)
    count = len(set(groups))
    if count < 2:
        raise UserError(
            f"All images belong to one group ({groups[0]}), which cannot be in two splits: change data.group, or set "
            f"{option} to 0."
        )
    limit = min(count, max(MAX_PARTS, round(1 / fraction)))
    part = min(max(Fraction(fraction).limit_denominator(limit), Fraction(1, limit)), Fraction(limit - 1, limit))
    chosen = list(_folds(labels, part.denominator, seed, groups))[: part.numerator]
    selected = np.zeros(len(labels), bool)
    selected[np.concatenate(chosen)] = True
    return np.flatnonzero(~selected), np.flatnonzero(selected)


def fold_split(
    labels: Labels, folds: int, fold: int, seed: int, classes: Sequence[str], groups: Sequence[str] = ()
) -> tuple[Indices, Indices]:
    """Split `labels` `[N] int64` into all folds but number `fold`, and that fold, as two ascending arrays of indices.

    The folds are those of scikit-learn's StratifiedKFold or, with `groups`, StratifiedGroupKFold, shuffled by `seed`.
    Raises UserError if any of the folds is empty, or the others lack a class.
    """
    counts = np.bincount(labels, minlength=len(classes))
    smallest = min(np.flatnonzero(counts).tolist(), key=lambda label: int(counts[label]))
    if not groups and counts[smallest] < folds:
        raise UserError(
            f"data.folds={folds} is more than the {counts[smallest]} training images of {classes[smallest]}: set "
            f"data.folds to at most {counts[smallest]}, or add images."
        )
    if groups and len(set(groups)) < folds:
        raise UserError(
            f"data.folds={folds} is more than the {len(set(groups))} groups of data.group, so a fold would be empty: "
            f"set data.folds to at most {len(set(groups))}."
        )
    if folds > counts.max():
        raise UserError(
            f"data.folds={folds} is more than the training images of any class: set data.folds to at most "
            f"{counts.max()}."
        )
    every = list(_folds(labels, folds, seed, groups))
    for number, val in enumerate(every):
        _require_usable_fold(number, val, counts - np.bincount(labels[val], minlength=len(classes)), classes, folds)
    return np.setdiff1d(np.arange(len(labels)), every[fold]), every[fold]


def _require_usable_fold(
    number: int, val: Indices, remaining: NDArray[np.int64], classes: Sequence[str], folds: int
) -> None:
    if not len(val):
        raise UserError(
            f"The groups of data.group are so unequal that fold {number} of data.folds={folds} is empty: set fewer "
            "folds."
        )
    if len(missing := np.flatnonzero(remaining == 0)):
        raise UserError(
            f"All images of {classes[missing[0]]} are in fold {number} of data.folds={folds}, because they belong to "
            "one group, so none would be left for training: add images of other groups, or change data.group."
        )


def _folds(labels: Labels, folds: int, seed: int, groups: Sequence[str] = ()) -> Iterator[Indices]:
    # Imported here, because it takes a second and few splits need it.
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    splitter = (StratifiedGroupKFold if groups else StratifiedKFold)(folds, shuffle=True, random_state=seed)
    identities = np.unique(groups, return_inverse=True)[1] if groups else None
    with warnings.catch_warnings():
        # Its warning that a class has fewer images than there are folds; with groups that is allowed.
        warnings.simplefilter("ignore", UserWarning)
        yield from (val for _, val in splitter.split(np.zeros(len(labels)), labels, identities))


def require_separate_groups(groups: Mapping[str, Sequence[str]]) -> None:
    """Raise UserError if a group has images in two splits; `groups` are the groups of each split's images."""
    seen: dict[str, str] = {}
    for split, names in groups.items():
        for name in dict.fromkeys(names):
            if seen.setdefault(name, split) != split:
                raise UserError(
                    f"The group {name} (data.group) has images in the {seen[name]} and in the {split} split: move them "
                    "into one of both."
                )


def _require_fraction(fraction: float, option: str) -> None:
    if not 0 <= fraction < 1:
        raise UserError(f"{option} is {fraction:g}: set a number from 0 up to, but not including, 1.")
