"""Learning curves: how loss and accuracy went, epoch by epoch."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cifar_pipeline.reporting.style import (
    FONT,
    INK,
    QUIET,
    SMALL,
    TRAIN,
    VALIDATION,
    in_percent,
    new_figure,
    plain_axes,
)


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
    plain_axes(rate, "Learning rate", x="epoch")
    _line(rate, epochs, _values(history, "lr"), QUIET, "lr")
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
    plain_axes(axes, name.capitalize(), x="epoch")
    _lines(axes, history, name)
    if name == "accuracy":
        in_percent(axes.yaxis)
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
    axes.legend(frameon=False, labelcolor=INK, prop={"family": FONT, "size": SMALL}, loc="best")


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
