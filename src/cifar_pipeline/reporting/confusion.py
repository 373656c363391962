"""The confusion matrix: which class is taken for which."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from cifar_pipeline.reporting.answers import counted
from cifar_pipeline.reporting.style import FONT, INK, QUIET, TEXT, enlargement, new_figure, picture_axes
from cifar_pipeline.visible import visible


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Draw, for each actual class (row), how many per cent of its images are taken for each class (column).

    Args:
        labels, predictions: `[N] int64`, numbers of classes.
        classes: the K names, in order; up to about a hundred.
        title: names the model and the data set.

    Returns:
        A figure of one panel; a cell that no image fell in is empty, a class without images is a grey row.
    """
    classes = [visible(label) for label in classes]
    number = len(classes)
    counts = counted(labels, predictions, number)
    images = counts.sum(axis=1, keepdims=True)
    percent = np.where(images > 0, 100 * counts / np.maximum(images, 1), np.nan)

    cell = float(np.clip(7.0 / number, 0.2, 0.8))
    name = 0.085 * max(len(label) for label in classes) * (1.0 if cell > 0.3 else 0.75)
    side = number * cell + name
    figure = new_figure(max(side + 0.8, 6.0), max(side + 1.2, 4.5), title)
    axes = figure.subplots()
    picture_axes(axes)
    axes.set_facecolor("#EDEDED")
    axes.imshow(np.ma.masked_invalid(percent), cmap="Blues", vmin=0, vmax=100)

    letters = TEXT if cell > 0.5 else min(TEXT, 37 * cell)
    upright = number <= 12 and max(len(label) for label in classes) * 0.1 < cell
    for set_ticks, turned in ((axes.set_xticks, 0 if upright else 90), (axes.set_yticks, 0)):
        set_ticks(range(number), classes, rotation=turned, fontsize=letters, family=FONT, parse_math=False)
    large = TEXT * enlargement(side)
    axes.set_xlabel("predicted", fontsize=large, color=QUIET, family=FONT)
    axes.set_ylabel("actual (rows add up to 100 %)", fontsize=large, color=QUIET, family=FONT)
    # White rules between the cells.
    axes.set_xticks(np.arange(number + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(number + 1) - 0.5, minor=True)
    axes.tick_params(which="minor", length=0)
    axes.grid(which="minor", color="white", linewidth=1 if number <= 30 else 0.4)

    for row, column in np.argwhere(counts):
        value = percent[row, column]
        text = axes.text(
            column, row, f"{value:.0f}", ha="center", va="center", family=FONT,
            fontsize=min(12.0, 35 * cell), color="white" if value > 60 else INK,
        )  # fmt: skip
        # Thousands of them stand inside the panel anyway: the layout need not measure each.
        text.set_in_layout(False)
    return figure
