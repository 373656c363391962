"""Draw learning curves, confusion matrices and reliability diagrams."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.cells import cell_len

from cifar_pipeline.reporting.metric_names import SPLIT_NAMES, display_name, format_metric, heading_name, is_fraction
from cifar_pipeline.reporting.metrics import Reliability, confusion_counts
from cifar_pipeline.reporting.style import (
    COLORS,
    FONT,
    GRID,
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


@dataclass(frozen=True)
class Panel:
    """Metrics of the history that share a panel.

    Attributes:
        title: the heading.
        labels: by column of the history.
        marked: the column whose value in the best epoch is marked; empty for none.
    """

    title: str
    labels: Mapping[str, str]
    marked: str = ""


def panels(history: pd.DataFrame, monitor: str) -> list[Panel]:
    """List the panels of the learning curves: loss, accuracy, and what else was monitored or chosen in `metrics`.

    The monitored metric has a panel of its own, unless it is a loss or an accuracy; the other chosen ones share one.
    """
    found = [
        Panel(name.capitalize(), {f"train/{name}": "train", f"val/{name}": "validation"}, f"val/{name}")
        for name in ("loss", "accuracy")
    ]
    found = [replace(panel, marked=monitor) if monitor in panel.labels else panel for panel in found]
    drawn = {column for panel in found for column in panel.labels}
    if monitor not in drawn and np.isfinite(_values(history, monitor)).any():
        found.append(Panel(heading_name(monitor), {monitor: display_name(monitor)}, monitor))
    others = [
        column
        for column in map(str, history)
        if column.startswith("val/") and column not in drawn | {monitor} and np.isfinite(_values(history, column)).any()
    ]
    if others:
        found.append(Panel("Other metrics", {column: display_name(column) for column in others}))
    return found


def learning_curves(history: pd.DataFrame, title: str, monitor: str, mode: str) -> Figure:
    """Draw loss, accuracy, the other metrics and the learning rate by epoch.

    Args:
        history: one row per epoch with columns `epoch`, `train/loss`, `train/accuracy` (fractions), `lr` and, with a
            validation split, `val/loss`, `val/accuracy` and other metrics; values may be NaN.
        title: names the model and the data set.
        monitor: the column by which the best weights are chosen.
        mode: whether larger or smaller values of it are better, `max` or `min`.

    Returns:
        A figure of three panels or more (`panels`). The best epoch (the first of ties) is marked.
    """
    drawn = panels(history, monitor)
    figure = new_figure(2.7 + 5.4 * len(drawn), 4.8, title)
    *all_axes, rate = figure.subplots(1, len(drawn) + 1, width_ratios=[3] * len(drawn) + [1.5])
    epochs = history["epoch"].to_numpy(float)

    for axes, panel in zip(all_axes, drawn, strict=True):
        _draw_panel(axes, history, panel, monitor, mode)
    clean_axes(rate, "Learning rate", x="epoch")
    _line(rate, epochs, _values(history, "lr"), MUTED, "lr")
    max_lr = np.nanmax(_values(history, "lr"), initial=0.0)
    rate.set_ylim(0, 1.1 * max_lr if max_lr > 0 else 1)
    rate.yaxis.set_major_locator(MaxNLocator(nbins=5))

    _set_epoch_axis(rate, epochs)
    return figure


def learning_curve(history: pd.DataFrame, panel: Panel, monitor: str, mode: str) -> Figure:
    """Draw a panel alone, small enough for a phone."""
    figure = new_figure(5.0, 3.4, "")
    _draw_panel(figure.subplots(), history, panel, monitor, mode)
    return figure


def best_epoch(history: pd.DataFrame, monitor: str, mode: str) -> int | None:
    """Return the row with the best value of the monitored metric, the first of ties; None without any."""
    values = _values(history, monitor)
    if not np.isfinite(values).any():
        return None
    return int(np.nanargmax(values) if mode == "max" else np.nanargmin(values))


def _draw_panel(axes: Axes, history: pd.DataFrame, panel: Panel, monitor: str, mode: str) -> None:
    epochs, best = history["epoch"].to_numpy(float), best_epoch(history, monitor, mode)
    clean_axes(axes, panel.title, x="epoch")
    _lines(axes, history, panel)
    if all(map(is_fraction, panel.labels)):
        format_percent(axes.yaxis)
    _set_epoch_axis(axes, epochs)
    if len(epochs) == 1 and axes.get_ylim()[1] > 0:
        # The range of two points would fill the axis however close they are.
        axes.set_ylim(0, 1.25 * axes.get_ylim()[1])
    if best is None:
        return
    if monitor in panel.labels:
        split = SPLIT_NAMES.get(monitor.partition("/")[0], "")
        value = format_metric(monitor, _values(history, monitor)[best], 1 if is_fraction(monitor) else 2)
        words = ["best", split, value, "%," if is_fraction(monitor) else ",", f"epoch {epochs[best]:.0f}"]
        axes.set_title(
            " ".join(filter(None, words)).replace(" ,", ","),
            loc="right", fontsize=SMALL, color=VALIDATION, family=FONT, pad=10,
        )  # fmt: skip
    _mark(axes, epochs[best], _values(history, panel.marked)[best])


def _values(history: pd.DataFrame, key: str) -> np.ndarray:
    if key not in history:
        return np.full(len(history), np.nan)
    return pd.to_numeric(history[key], errors="coerce").to_numpy(float)


def _lines(axes: Axes, history: pd.DataFrame, panel: Panel) -> None:
    epochs = history["epoch"].to_numpy(float)
    colors = (TRAIN, VALIDATION) if len(panel.labels) == 2 and panel.marked else (VALIDATION,)
    for (column, label), color in zip(panel.labels.items(), cycle(colors if panel.marked else COLORS)):
        _line(axes, epochs, _values(history, column), color, label)
    axes.legend(frameon=False, labelcolor=TEXT_COLOR, prop={"family": FONT, "size": SMALL}, loc="best")


def _line(axes: Axes, epochs: np.ndarray, values: np.ndarray, color: str, label: str) -> None:
    finite = np.isfinite(values)
    if finite.any():
        # Many markers would hide the line.
        marker = "o" if finite.sum() <= 30 else ""
        axes.plot(epochs[finite], values[finite], color=color, linewidth=2, marker=marker, markersize=5, label=label)


def _mark(axes: Axes, epoch: float, value: float) -> None:
    axes.axvline(epoch, color=VALIDATION, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
    if np.isfinite(value):
        axes.plot(
            [epoch], [value], marker="o", markersize=11, markerfacecolor="none", color=VALIDATION, markeredgewidth=2,
            clip_on=False,
        )  # fmt: skip


def _set_epoch_axis(axes: Axes, epochs: np.ndarray) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    margin = max(0.5, 0.03 * float(np.ptp(epochs)))
    axes.set_xlim(epochs.min() - margin, epochs.max() + margin)


def range_test_figure(
    lrs: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[tuple[float, float]],
    suggestion: float | None,
    title: str,
    log_axis: bool,
) -> Figure:
    """Draw the training loss of a learning rate range test, and mark the suggested learning rate.

    Args:
        lrs: the learning rate of each step.
        losses: the loss of each step; may be NaN.
        smoothed: learning rates with the smoothed loss; may be empty.
        suggestion: None without one.
        title: names the recipe and the data set.
        log_axis: whether the axis of the learning rates is logarithmic.
    """
    figure = new_figure(9.0, 5.0, title)
    axes = figure.subplots()
    clean_axes(axes, "Training loss", x="learning rate", y="")
    if log_axis:
        axes.set_xscale("log")
    axes.plot(lrs, losses, color=GRID, linestyle="", marker=".", markersize=3, label="a step", zorder=1)
    if smoothed:
        rates, values = np.array(smoothed).T
        axes.plot(rates, values, color=TRAIN, linewidth=2, label="smoothed")
        # The loss of a diverging training would press the part that matters against the axis.
        lowest, start = float(values.min()), float(values[: int(values.argmin()) + 1].max())
        margin = max(start - lowest, 0.05 * abs(start))
        axes.set_ylim(lowest - 0.4 * margin, start + 0.6 * margin)
    if smoothed and suggestion is not None:
        value = float(np.interp(suggestion, rates, values))
        axes.axvline(suggestion, color=VALIDATION, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
        axes.plot([suggestion], [value], color=VALIDATION, linestyle="", marker="o", markersize=8)
        axes.annotate(
            f"suggested: {suggestion:g}", (suggestion, value), xytext=(10, 8), textcoords="offset points",
            fontsize=TEXT, color=VALIDATION, family=FONT,
        )  # fmt: skip
    axes.legend(frameon=False, labelcolor=TEXT_COLOR, prop={"family": FONT, "size": SMALL}, loc="lower left")
    return figure


def confusion_figure(
    labels: np.ndarray, predictions: np.ndarray, classes: Sequence[str], title: str, has_others: bool = False
) -> Figure:
    """Draw the confusion matrix in percent of the actual class (row) by predicted class (column).

    Args:
        labels, predictions: `[N] int64`, class indices.
        classes: K class names, in order; up to about a hundred.
        title: names the model and the data set.
        has_others: the last class is all others together (`Predictions.grouped`): it has a column and no row.

    Returns:
        A figure of one panel; cells without images are empty, a class without images is a gray row.
    """
    classes = [escape_control(label) for label in classes]
    num_classes = len(classes)
    counts = confusion_counts(labels, predictions, num_classes)[: num_classes - has_others]
    num_rows = len(counts)
    images = counts.sum(axis=1, keepdims=True)
    percent = np.where(images > 0, 100 * counts / np.maximum(images, 1), np.nan)

    cell = float(np.clip(7.0 / num_classes, 0.2, 0.8))
    label_width = 0.085 * max(map(cell_len, classes)) * (1.0 if cell > 0.3 else 0.75)
    side = num_classes * cell + label_width
    figure = new_figure(max(side + 0.8, 6.0), max(side + 1.2 - has_others * cell, 4.5), title)
    axes = figure.subplots()
    image_axes(axes)
    axes.set_facecolor("#EDEDED")
    axes.imshow(np.ma.masked_invalid(percent), cmap="Blues", vmin=0, vmax=100)

    tick_size = TEXT if cell > 0.5 else min(TEXT, 37 * cell)
    horizontal = num_classes <= 12 and max(map(cell_len, classes)) * 0.1 < cell
    for set_ticks, count, rotation in (
        (axes.set_xticks, num_classes, 0 if horizontal else 90),
        (axes.set_yticks, num_rows, 0),
    ):
        set_ticks(range(count), classes[:count], rotation=rotation, fontsize=tick_size, family=FONT, parse_math=False)
    label_size = TEXT * font_scale(side)
    axes.set_xlabel("predicted", fontsize=label_size, color=MUTED, family=FONT)
    axes.set_ylabel("actual (rows add up to 100 %)", fontsize=label_size, color=MUTED, family=FONT)
    # White lines between the cells.
    axes.set_xticks(np.arange(num_classes + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(num_rows + 1) - 0.5, minor=True)
    axes.tick_params(which="minor", length=0)
    axes.grid(which="minor", color="white", linewidth=1 if num_classes <= 30 else 0.4)

    for row, column in np.argwhere(counts):
        value = percent[row, column]
        text = axes.text(
            column, row, f"{value:.0f}", ha="center", va="center", family=FONT,
            fontsize=min(12.0, 35 * cell), color="white" if value > 60 else TEXT_COLOR,
        )  # fmt: skip
        # They are always inside the panel, and measuring thousands of them is slow.
        text.set_in_layout(False)
    return figure


def reliability_diagram(bins: Reliability) -> Figure:
    """Draw accuracy by confidence as bars with the diagonal, and below it the number of predictions per bin."""
    figure = new_figure(5.0, 4.4, "")
    accuracy_axes, count_axes = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    starts, width = bins.edges[:-1], np.diff(bins.edges)
    clean_axes(accuracy_axes, "Accuracy")
    accuracy_axes.bar(starts, np.nan_to_num(bins.accuracy), width, align="edge", color=TRAIN, alpha=0.75, linewidth=0)
    accuracy_axes.plot([0, 1], [0, 1], color=VALIDATION, linewidth=1.6, linestyle=(0, (4, 3)))
    # Above the bars, which fill the panel of a network that is nearly always right.
    accuracy_axes.set_title(
        "dashed: confidence equals accuracy", loc="right", fontsize=SMALL, color=VALIDATION, family=FONT, pad=10
    )
    accuracy_axes.set_xlim(0, 1)
    accuracy_axes.set_ylim(0, 1)
    clean_axes(count_axes, "Predictions", x="confidence (probability of the prediction)")
    count_axes.bar(starts, bins.counts, width, align="edge", color=MUTED, alpha=0.75, linewidth=0)
    for axis in (accuracy_axes.xaxis, accuracy_axes.yaxis):
        format_percent(axis)
    return figure
