"""Learning curves: how loss and accuracy went, epoch by epoch.

The confusion matrix: which class is taken for which.

How far a model's probabilities can be taken at their word: the reliability diagram.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cifar_pipeline.reporting.metrics import Predictions, confusion_counts
from cifar_pipeline.reporting.style import (
    FONT,
    MUTED,
    SMALL,
    TEXT,
    TEXT_COLOR,
    TRAIN,
    VALIDATION,
    clean_axes,
    font_scale,
    format_percent,
    image_axes,
    new_figure,
)
from cifar_pipeline.utils.text import escape_control


def learning_curves(history: pd.DataFrame, title: str) -> Figure:
    """Draw loss, accuracy and, smaller, the learning rate against the epoch.

    Args:
        history: a row per epoch with columns `epoch`, `train/loss`, `train/accuracy` (fractions), `lr` and, where a
            validation part was held out, `val/loss`, `val/accuracy`; values may be NaN, further columns are ignored.
        title: what was trained on what; names the data set.

    Returns:
        A figure of three panels. The epoch with the best validation accuracy (the first of equals) is marked.
    """
    figure = new_figure(13.5, 4.8, title)
    loss, accuracy, rate = figure.subplots(1, 3, width_ratios=[3, 3, 1.5])
    epochs = history["epoch"].to_numpy(float)

    _panel(loss, history, "loss")
    _panel(accuracy, history, "accuracy")
    clean_axes(rate, "Learning rate", x="epoch")
    _line(rate, epochs, _values(history, "lr"), MUTED, "lr")
    highest = np.nanmax(_values(history, "lr"), initial=0.0)
    rate.set_ylim(0, 1.1 * highest if highest > 0 else 1)
    rate.yaxis.set_major_locator(MaxNLocator(nbins=5))

    _whole_epochs(rate, epochs)
    return figure


def learning_curve(history: pd.DataFrame, name: str) -> Figure:
    """Draw one of the panels, `loss` or `accuracy`, in the size in which a telephone can show it."""
    figure = new_figure(5.0, 3.4, "")
    _panel(figure.subplots(), history, name)
    return figure


def best_epoch(history: pd.DataFrame) -> int | None:
    """The row with the best validation accuracy, the first of equals; None without a validation part."""
    values = _values(history, "val/accuracy")
    return None if np.isnan(values).all() else int(np.nanargmax(values))


def _panel(axes: Axes, history: pd.DataFrame, name: str) -> None:
    epochs, best = history["epoch"].to_numpy(float), best_epoch(history)
    clean_axes(axes, name.capitalize(), x="epoch")
    _lines(axes, history, name)
    if name == "accuracy":
        format_percent(axes.yaxis)
    _whole_epochs(axes, epochs)
    if len(epochs) == 1:
        # Two points would fill the whole height with their difference.
        axes.set_ylim(0, 1.25 * axes.get_ylim()[1])
    if best is None:
        return
    if name == "accuracy":
        top = _values(history, "val/accuracy")[best]
        axes.set_title(
            f"best validation {100 * top:.1f} %, epoch {epochs[best]:.0f}",
            loc="right", fontsize=SMALL, color=VALIDATION, family=FONT, pad=10,
        )  # fmt: skip
    _mark(axes, epochs[best], _values(history, f"val/{name}")[best])


def _values(history: pd.DataFrame, key: str) -> np.ndarray:
    if key not in history:
        return np.full(len(history), np.nan)
    return pd.to_numeric(history[key], errors="coerce").to_numpy(float)


def _lines(axes: Axes, history: pd.DataFrame, name: str) -> None:
    epochs = history["epoch"].to_numpy(float)
    _line(axes, epochs, _values(history, f"train/{name}"), TRAIN, "train")
    _line(axes, epochs, _values(history, f"val/{name}"), VALIDATION, "validation")
    axes.legend(frameon=False, labelcolor=TEXT_COLOR, prop={"family": FONT, "size": SMALL}, loc="best")


def _line(axes: Axes, epochs: np.ndarray, values: np.ndarray, colour: str, label: str) -> None:
    known = np.isfinite(values)
    if known.any():
        # Points of a long training would hide its line.
        marker = "o" if known.sum() <= 30 else ""
        axes.plot(epochs[known], values[known], color=colour, linewidth=2, marker=marker, markersize=5, label=label)


def _mark(axes: Axes, epoch: float, value: float) -> None:
    axes.axvline(epoch, color=VALIDATION, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
    if np.isfinite(value):
        axes.plot(
            [epoch], [value], marker="o", markersize=11, markerfacecolor="none", color=VALIDATION, markeredgewidth=2,
            clip_on=False,
        )  # fmt: skip


def _whole_epochs(axes: Axes, epochs: np.ndarray) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    margin = max(0.5, 0.03 * float(np.ptp(epochs)))
    axes.set_xlim(epochs.min() - margin, epochs.max() + margin)


def confusion_figure(labels: np.ndarray, predictions: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Draw, for each actual class (row), how many per cent of its images are taken for each class (column).

    Args:
        labels, predictions: `[N] int64`, numbers of classes.
        classes: the K names, in order; up to about a hundred.
        title: names the model and the data set.

    Returns:
        A figure of one panel; a cell that no image fell in is empty, a class without images is a grey row.
    """
    classes = [escape_control(label) for label in classes]
    number = len(classes)
    counts = confusion_counts(labels, predictions, number)
    images = counts.sum(axis=1, keepdims=True)
    percent = np.where(images > 0, 100 * counts / np.maximum(images, 1), np.nan)

    cell = float(np.clip(7.0 / number, 0.2, 0.8))
    name = 0.085 * max(len(label) for label in classes) * (1.0 if cell > 0.3 else 0.75)
    side = number * cell + name
    figure = new_figure(max(side + 0.8, 6.0), max(side + 1.2, 4.5), title)
    axes = figure.subplots()
    image_axes(axes)
    axes.set_facecolor("#EDEDED")
    axes.imshow(np.ma.masked_invalid(percent), cmap="Blues", vmin=0, vmax=100)

    letters = TEXT if cell > 0.5 else min(TEXT, 37 * cell)
    upright = number <= 12 and max(len(label) for label in classes) * 0.1 < cell
    for set_ticks, turned in ((axes.set_xticks, 0 if upright else 90), (axes.set_yticks, 0)):
        set_ticks(range(number), classes, rotation=turned, fontsize=letters, family=FONT, parse_math=False)
    large = TEXT * font_scale(side)
    axes.set_xlabel("predicted", fontsize=large, color=MUTED, family=FONT)
    axes.set_ylabel("actual (rows add up to 100 %)", fontsize=large, color=MUTED, family=FONT)
    # White rules between the cells.
    axes.set_xticks(np.arange(number + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(number + 1) - 0.5, minor=True)
    axes.tick_params(which="minor", length=0)
    axes.grid(which="minor", color="white", linewidth=1 if number <= 30 else 0.4)

    for row, column in np.argwhere(counts):
        value = percent[row, column]
        text = axes.text(
            column, row, f"{value:.0f}", ha="center", va="center", family=FONT,
            fontsize=min(12.0, 35 * cell), color="white" if value > 60 else TEXT_COLOR,
        )  # fmt: skip
        # Thousands of them stand inside the panel anyway: the layout need not measure each.
        text.set_in_layout(False)
    return figure


@dataclass(frozen=True)
class Reliability:
    """Answers by their probability, in equal bins of [0, 1]; all `[bins]`, NaN where a bin holds no answer."""

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error: `sum_b n_b / N * |accuracy_b - mean confidence_b|` (Guo et al. 2017)."""
        gaps = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float((self.counts * gaps).sum() / max(1, self.counts.sum()))

    @property
    def overconfidence(self) -> float:
        """Mean probability less accuracy over all answers: above 0 the model is too sure, below 0 too modest."""
        gaps = np.nan_to_num(self.confidence - self.accuracy)
        return float((self.counts * gaps).sum() / max(1, self.counts.sum()))


def reliability(answers: Predictions, bins: int) -> Reliability:
    """Put the answers into bins by their probability, as the calibration error in metrics.json does."""
    # In the probabilities' own precision, so that one on an edge falls into the same bin as there.
    edges = np.linspace(0, 1, bins + 1, dtype=np.float32)
    places = np.clip(np.digitize(answers.confidence.astype(np.float32), edges) - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    some = np.where(counts > 0, counts, np.nan)
    confidence = np.bincount(places, weights=answers.confidence, minlength=bins) / some
    accuracy = np.bincount(places, weights=answers.correct, minlength=bins) / some
    return Reliability(edges.astype(float), counts, confidence, accuracy)


def reliability_diagram(found: Reliability) -> Figure:
    """Draw accuracy against probability, a bar a bin, and the line where both are equal; below, how many answers."""
    figure = new_figure(5.0, 4.4, "")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    starts, width = found.edges[:-1], np.diff(found.edges)
    clean_axes(above, "Right answers")
    above.bar(starts, np.nan_to_num(found.accuracy), width, align="edge", color=TRAIN, alpha=0.75, linewidth=0)
    above.plot([0, 1], [0, 1], color=VALIDATION, linewidth=1.6, linestyle=(0, (4, 3)))
    above.text(0.02, 0.93, "dashed: probability and accuracy are equal", transform=above.transAxes, fontsize=SMALL,
               color=TEXT_COLOR, family=FONT)  # fmt: skip
    above.set_xlim(0, 1)
    above.set_ylim(0, 1)
    clean_axes(below, "Answers", x="probability of the answer")
    below.bar(starts, found.counts, width, align="edge", color=MUTED, alpha=0.75, linewidth=0)
    for axis in (above.xaxis, above.yaxis):
        format_percent(axis)
    return figure
