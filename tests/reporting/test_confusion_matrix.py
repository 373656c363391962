"""Percentages of the confusion matrix, and its legibility with any number of classes."""

import numpy as np
import pytest
from matplotlib.axes import Axes

from cifar_pipeline.reporting.plots import confusion_figure


def cells(axes: Axes) -> dict[tuple[int, int], str]:
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    return {(int(row), int(column)): text for (column, row), text in texts.items()}


def test_rows_are_percentages_of_the_actual_class() -> None:
    labels = np.array([0] * 4 + [1] * 1000)
    predictions = np.array([0, 0, 0, 1] + [1] * 998 + [0] * 2)
    (axes,) = confusion_figure(labels, predictions, ["cat", "dog"], "LeNet on digits").axes
    # Two of a thousand are shown as 0; a cell without images is empty.
    assert cells(axes) == {(0, 0): "75", (0, 1): "25", (1, 0): "0", (1, 1): "100"}
    assert axes.get_xlabel() == "predicted" and axes.get_ylabel().startswith("actual")


def test_a_class_without_images_and_one_never_predicted_stay_empty() -> None:
    (axes,) = confusion_figure(np.array([0, 0]), np.array([0, 0]), ["a", "b", "c"], "LeNet on digits").axes
    assert cells(axes) == {(0, 0): "100"}
    array = axes.get_images()[0].get_array()
    assert array is not None
    assert np.ma.getmaskarray(array).tolist() == [[False] * 3, [True] * 3, [True] * 3]


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_names_and_numbers_neither_overlap_nor_leave_the_figure(num_classes: int) -> None:
    labels = np.arange(10 * num_classes) % num_classes
    classes = [f"aquarium_fish_{k}" for k in range(num_classes)]
    figure = confusion_figure(labels, labels, classes, "LeNet on digits")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == classes
    box = axes.get_tightbbox()
    assert box is not None and box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    cell = axes.get_window_extent().height / num_classes
    numbers = axes.texts[0].get_window_extent()
    assert numbers.width <= cell and numbers.height <= cell
    assert all(text.get_window_extent().height <= cell for text in axes.get_yticklabels())
    assert all(text.get_window_extent().width <= cell for text in axes.get_xticklabels())
    assert min(float(text.get_fontsize()) for text in axes.texts) >= 6


def test_all_other_classes_together_have_a_column_and_no_row() -> None:
    labels, predictions = np.array([0] * 4 + [1] * 2), np.array([0, 0, 1, 2, 1, 2])
    classes = ["cat", "dog", "(other classes)"]
    (axes,) = confusion_figure(labels, predictions, classes, "LeNet on digits", has_others=True).axes
    assert cells(axes) == {(0, 0): "50", (0, 1): "25", (0, 2): "25", (1, 1): "50", (1, 2): "50"}
    assert [text.get_text() for text in axes.get_yticklabels()] == classes[:2]
    assert [text.get_text() for text in axes.get_xticklabels()] == classes
