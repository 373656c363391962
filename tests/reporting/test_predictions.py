"""Selection of predictions by confidence, and colors of attribution maps."""

import numpy as np

from cifar_pipeline.reporting.image_figures import attribution_overlay
from cifar_pipeline.reporting.metrics import Predictions

PREDICTIONS = Predictions(
    ["cat", "dog", "ship"],
    labels=np.array([0, 0, 1, 1, 2, 0]),
    predictions=np.array([0, 0, 1, 2, 0, 1]),
    confidence=np.array([0.7, 0.9, 0.8, 0.6, 0.99, 0.6]),
)


def test_the_most_confident_correct_prediction_of_each_class_and_the_most_confident_errors() -> None:
    assert PREDICTIONS.most_confident_correct(5).tolist() == [1, 2]
    assert PREDICTIONS.most_confident_correct(1).tolist() == [1]
    assert PREDICTIONS.most_confident_errors(2).tolist() == [4, 3]  # of ties the earlier
    assert PREDICTIONS.examples_to_explain(2).tolist() == [1, 2, 4, 3]
    assert PREDICTIONS.examples_to_explain(0).tolist() == []


def test_the_confusion_matrix_counts_actual_by_predicted_class() -> None:
    assert PREDICTIONS.confusion_matrix().tolist() == [[2, 1, 0], [0, 1, 1], [1, 0, 0]]


def test_orange_is_for_the_prediction_and_blue_against_it() -> None:
    values = np.zeros((1, 4, 4))
    values[0, 0, 0], values[0, 1, 1] = 1.0, -1.0
    overlay = attribution_overlay(np.full((1, 4, 4, 3), 128, np.uint8), values)[0].astype(int)
    red, _, blue = overlay[0, 0]
    assert red > blue + 100
    red, _, blue = overlay[1, 1]
    assert blue > red + 100
    assert np.ptp(overlay[2:], axis=(0, 1, 2)) == 0  # pixels without attribution stay gray


def test_an_attribution_of_zero_leaves_a_gray_image() -> None:
    overlay = attribution_overlay(np.full((1, 4, 4, 1), 128, np.uint8), np.zeros((1, 4, 4)))
    assert overlay.shape == (1, 4, 4, 3) and len(np.unique(overlay)) == 1


def test_attributions_of_large_images_are_added_up_in_blocks() -> None:
    values = np.where(np.arange(280 * 280).reshape(1, 280, 280) % 2, 1.0, -1.0)  # alternating signs cancel
    values[0, 100:105, 200:205] = 1.0
    overlay = attribution_overlay(np.full((1, 280, 280, 3), 128, np.uint8), values)[0].astype(int)
    assert len(np.unique(overlay[100:105, 200:205].reshape(-1, 3), axis=0)) == 1
    red, _, blue = overlay[102, 202]
    assert red > blue + 100
    assert attribution_overlay(np.zeros((2, 57, 100, 1), np.uint8), np.ones((2, 57, 100))).shape == (2, 57, 100, 3)


def test_the_most_frequent_errors_are_those_of_the_matrix() -> None:
    random = np.random.default_rng(0)
    labels, predictions = random.integers(0, 9, (2, 500))
    named = Predictions([str(k) for k in range(9)], labels, predictions, np.ones(500))
    errors = named.confusion_matrix() * (1 - np.eye(9, dtype=int))
    pairs = named.confused_pairs(100)
    assert [(pair.actual, pair.predicted, pair.count) for pair in pairs] == [
        (*divmod(int(cell), 9), errors.flat[cell])
        for cell in np.argsort(-errors, axis=None, kind="stable")
        if errors.flat[cell]
    ]
    assert [pair.images for pair in pairs[:3]] == [(labels == pair.actual).sum() for pair in pairs[:3]]
    assert named.confused_classes(2).tolist() == sorted(
        {c for pair in pairs[:2] for c in (pair.actual, pair.predicted)}
    )


def test_some_classes_keep_their_images_and_all_other_predictions_become_one_class() -> None:
    grouped = PREDICTIONS.grouped(np.array([0, 2]))
    assert grouped.classes == ["cat", "ship", "(other classes)"]
    assert grouped.labels.tolist() == [0, 0, 1, 0] and grouped.predictions.tolist() == [0, 0, 0, 2]
