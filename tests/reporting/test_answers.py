"""Which answers are shown, and what their evidence looks like."""

import numpy as np

from cifar_pipeline.reporting.image_figures import attribution_overlay
from cifar_pipeline.reporting.metrics import Predictions

ANSWERS = Predictions(
    ["cat", "dog", "ship"],
    labels=np.array([0, 0, 1, 1, 2, 0]),
    predictions=np.array([0, 0, 1, 2, 0, 1]),
    confidence=np.array([0.7, 0.9, 0.8, 0.6, 0.99, 0.6]),
)


def test_the_surest_right_answer_of_each_class_and_the_surest_mistakes() -> None:
    assert ANSWERS.surest_right(5).tolist() == [1, 2]
    assert ANSWERS.surest_right(1).tolist() == [1]
    assert ANSWERS.surest_mistakes(2).tolist() == [4, 3]  # of equals the earlier
    assert ANSWERS.telling(2).tolist() == [1, 2, 4, 3]
    assert ANSWERS.telling(0).tolist() == []


def test_mistakes_are_counted_by_who_is_taken_for_whom() -> None:
    assert ANSWERS.counts().tolist() == [[2, 1, 0], [0, 1, 1], [1, 0, 0]]


def test_orange_speaks_for_the_answer_and_blue_against_it() -> None:
    values = np.zeros((1, 4, 4))
    values[0, 0, 0], values[0, 1, 1] = 1.0, -1.0
    drawn = attribution_overlay(np.full((1, 4, 4, 3), 128, np.uint8), values)[0].astype(int)
    red, _, blue = drawn[0, 0]
    assert red > blue + 100
    red, _, blue = drawn[1, 1]
    assert blue > red + 100
    assert np.ptp(drawn[2:], axis=(0, 1, 2)) == 0  # what says nothing stays grey


def test_no_evidence_leaves_a_grey_image() -> None:
    drawn = attribution_overlay(np.full((1, 4, 4, 1), 128, np.uint8), np.zeros((1, 4, 4)))
    assert drawn.shape == (1, 4, 4, 3) and len(np.unique(drawn)) == 1
