"""What is held back: evenly, by seed, and never twice."""

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold

from cifar_pipeline.data.sources.base import RawDataset
from cifar_pipeline.data.splits import stratified_split, train_val_split
from cifar_pipeline.utils.errors import UserError

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [50, 73, 101, 27]))


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.37, 0.9])
def test_splits_are_disjoint_complete_and_even(fraction):
    train, val = stratified_split(LABELS, fraction, seed=3)
    assert sorted([*train, *val]) == list(range(len(LABELS)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(val) > 0).all()
    assert len(val) == round(fraction * len(LABELS))
    exact = np.bincount(LABELS) * fraction
    assert (np.abs(np.bincount(LABELS[val]) - exact) < 1).all()


def test_the_seed_decides_the_split():
    one, again, other = (stratified_split(LABELS, 0.2, seed)[1].tolist() for seed in (0, 0, 1))
    assert one == again
    assert one != other


def test_the_validation_images_never_change():
    assert stratified_split(np.repeat([0, 1], 10), 0.2, seed=0)[1].tolist() == [2, 8, 13, 15]


def test_a_fraction_of_zero_selects_nothing():
    train, val = stratified_split(LABELS, 0, seed=0)
    assert train.tolist() == list(range(len(LABELS)))
    assert val.tolist() == []
    assert val.dtype == np.int64


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.2, float("nan")])
def test_an_invalid_fraction_is_refused(fraction):
    with pytest.raises(UserError, match="the fraction is"):
        stratified_split(LABELS, fraction, seed=0)


@pytest.mark.parametrize(("fraction", "held"), [(0.001, [1, 1, 1, 1]), (0.999, [49, 72, 100, 26])])
def test_each_class_has_an_image_in_both_splits(fraction, held):
    train, val = stratified_split(LABELS, fraction, seed=0)
    assert np.bincount(LABELS[val]).tolist() == held
    assert sorted([*train, *val]) == list(range(len(LABELS)))


def test_a_class_of_a_single_image_is_refused_by_its_name():
    with pytest.raises(UserError, match=r"Class bee, cat has a single image left.*data\.val_fraction to 0"):
        stratified_split(np.array([0, 0, 1, 2]), 0.5, 0, ("ant", "bee", "cat"), "data.val_fraction")


def raw(labels, groups=(), val=None):
    """A dataset with these labels and groups, of images that nobody looks at."""
    images = np.zeros((len(labels), 2, 2, 3), np.uint8)
    return RawDataset(
        ("ant", "bee", "cat", "dog"), images, labels, images[:1], labels[:1], val_indices=val, train_groups=groups
    )


def test_the_folds_are_scikit_learns_and_each_image_is_in_one():
    splits = [train_val_split(raw(LABELS), 0.1, 3, folds=5, fold=fold) for fold in range(5)]
    assert sorted(np.concatenate([val for _, val in splits])) == list(range(len(LABELS)))
    expected = StratifiedKFold(5, shuffle=True, random_state=3).split(LABELS, LABELS)
    for (train, val), (expected_train, expected_val) in zip(splits, expected, strict=True):
        assert (train == expected_train).all() and (val == expected_val).all()
        assert (np.abs(np.bincount(LABELS[val]) - np.bincount(LABELS) / 5) < 1).all()
    other = train_val_split(raw(LABELS), 0.1, 4, folds=5, fold=0)
    assert other[1].tolist() != splits[0][1].tolist()


def patients(count, seed=0):
    """Name a patient for each image, of different numbers of images."""
    return tuple(f"patient {number}" for number in np.random.default_rng(seed).integers(0, count, len(LABELS)))


@pytest.mark.parametrize("groups", [patients(12), patients(40), patients(9, seed=1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_group_is_on_both_sides_of_a_fold(groups, seed):
    seen = []
    for fold in range(4):
        train, val = train_val_split(raw(LABELS, groups), 0.1, seed, folds=4, fold=fold)
        assert sorted([*train, *val]) == list(range(len(LABELS))) and len(val)
        assert not {groups[index] for index in train} & {groups[index] for index in val}
        seen.extend(val)
    assert sorted(seen) == list(range(len(LABELS)))


@pytest.mark.parametrize(("fraction", "low", "high"), [(0.1, 0.05, 0.15), (0.25, 0.18, 0.32), (0.6, 0.5, 0.7)])
def test_a_fraction_of_the_groups_is_about_that_fraction_of_the_images(fraction, low, high):
    groups = patients(40)
    train, val = train_val_split(raw(LABELS, groups), fraction, 0)
    assert not {groups[index] for index in train} & {groups[index] for index in val}
    assert low < len(val) / len(LABELS) < high
    assert (np.bincount(LABELS[val], minlength=4) > 0).all()
    again = train_val_split(raw(LABELS, groups), fraction, 0)[1]
    assert val.tolist() == again.tolist() != train_val_split(raw(LABELS, groups), fraction, 1)[1].tolist()


def test_two_groups_are_one_on_each_side():
    groups = tuple("ab"[index % 2] for index in range(len(LABELS)))
    train, val = train_val_split(raw(LABELS, groups), 0.1, 0)
    assert {len({groups[index] for index in side}) for side in (train, val)} == {1}
    train, val = train_val_split(raw(LABELS, groups), 0, 0)
    assert len(val) == 0 and len(train) == len(LABELS)


FEW = np.repeat(np.arange(4), [3, 9, 9, 9])
BY_CLASS = tuple(f"{'first' if label == 0 else index % 5}" for index, label in enumerate(FEW))


@pytest.mark.parametrize(
    ("dataset", "folds", "message"),
    [
        (raw(FEW), 5, r"data\.folds=5 is more than the 3 training images of ant: set data\.folds to at most 3"),
        (raw(FEW, ("a", "b", "c") * 10), 4, r"data\.folds=4 is more than the 3 groups .* a fold would be empty"),
        (raw(FEW, BY_CLASS), 3, r"All images of ant are in fold \d of data\.folds=3, .* one group"),
        (raw(FEW, tuple(map(str, range(30)))), 10, r"more than the training images of any class: .* at most 9"),
        (raw(FEW, val=np.array([0, 5])), 3, r"data\.fold=1 divides the training images.*a validation split of their"),
    ],
)
def test_folds_that_the_images_do_not_allow_are_refused(dataset, folds, message):
    with pytest.raises(UserError, match=message):
        train_val_split(dataset, 0.1, 0, folds=folds, fold=1)


def test_a_single_group_cannot_be_split():
    with pytest.raises(UserError, match=r"one group \(p1\).*change data\.group, or set data\.val_fraction to 0"):
        train_val_split(raw(FEW, ("p1",) * 30), 0.1, 0)


def test_a_source_with_too_few_groups_is_refused():
    with pytest.raises(UserError, match="There are 2 groups for 30 training images"):
        raw(FEW, ("a", "b"))


def test_the_seed_decides_a_stratified_split() -> None:
    first, again, other = (train_val_split(raw(LABELS), 0.2, seed)[1].tolist() for seed in (3, 3, 4))
    assert first == again != other
