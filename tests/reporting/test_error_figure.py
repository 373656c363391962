"""Order and captions of the most confident errors."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from cifar_pipeline.reporting.image_figures import error_figure
from cifar_pipeline.reporting.style import save

CLASSES = ["cat", "dog", "ship"]
IMAGES = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
LABELS = np.array([0, 1, 2, 0, 0])
PREDICTIONS = np.array([1, 1, 0, 2, 2])
PROBABILITIES = np.array([0.981, 0.999, 0.4, 0.7, 0.7], np.float32)


def captions(count: int, columns: int = 8) -> list[str]:
    figure = error_figure(IMAGES, LABELS, PREDICTIONS, PROBABILITIES, CLASSES, count, "LeNet on digits", columns)
    return [axes.get_title().replace("\n", " ") for axes in figure.axes if axes.get_title()]


def test_only_errors_are_shown_the_most_confident_first() -> None:
    assert captions(10) == [
        "cat, predicted as dog (98 %)",
        "cat, predicted as ship (70 %)",
        "cat, predicted as ship (70 %)",
        "ship, predicted as cat (40 %)",
    ]
    assert captions(2) == captions(10)[:2]
    assert captions(10, columns=3) == captions(10)


def test_captions_match_their_images_and_ties_keep_their_order() -> None:
    figure = error_figure(IMAGES, LABELS, PREDICTIONS, PROBABILITIES, CLASSES, 4, "LeNet on digits")
    assert [int(axes.get_images()[0].get_array().max()) for axes in figure.axes] == [0, 3, 4, 2]  # type: ignore[union-attr]


def test_many_ties_keep_their_order() -> None:
    images = np.arange(200, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 1, 3), np.uint8)
    zeros, confidence = np.zeros(200, np.int64), np.tile(np.array([0.5, 0.9], np.float32), 100)
    figure = error_figure(images, zeros, zeros + 1, confidence, CLASSES, 6, "LeNet on digits")
    assert [int(axes.get_images()[0].get_array().max()) for axes in figure.axes] == [1, 3, 5, 7, 9, 11]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("predictions", "count", "message"),
    [
        (LABELS, 24, "No errors: all 5 images are classified correctly."),
        (LABELS, 0, "No errors: all 5 images are classified correctly."),
        (PREDICTIONS, 0, "4 of 5 images are misclassified; none is shown."),
    ],
)
def test_a_message_is_drawn_if_there_is_nothing_to_show(
    predictions: np.ndarray, count: int, message: str, tmp_path: Path
) -> None:
    figure = error_figure(IMAGES, LABELS, predictions, PROBABILITIES, CLASSES, count, "LeNet on digits")
    assert [text.get_text() for text in figure.axes[0].texts] == [message]
    save(figure, tmp_path / "none.png", dpi=50)


def test_gray_images_and_long_names_fit() -> None:
    gray, names = IMAGES[..., :1], ["an uncommonly long name of a class"] * 3
    figure = error_figure(
        gray.repeat(8, 0), LABELS.repeat(8), PREDICTIONS.repeat(8), PROBABILITIES.repeat(8), names, 24, ""
    )
    figure.draw_without_rendering()
    boxes = [axes.title.get_window_extent() for axes in figure.axes[:8]]
    assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))
