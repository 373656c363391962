"""What is held back: evenly, by seed, and never twice."""

import numpy as np
import pytest

from cifar_pipeline.data.preprocessing import stratified_split
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
