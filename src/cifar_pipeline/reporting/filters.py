"""The first layer's filters: what the network looks for in the pixels."""

import numpy as np
from matplotlib.figure import Figure

from cifar_pipeline.reporting.mosaic import show, tile
from cifar_pipeline.reporting.style import FONT, QUIET, SMALL, new_figure, only_words


def first_layer(weights: np.ndarray, title: str) -> Figure:
    """Draw each filter of a first convolution: one colour picture where it sees three channels, else grey planes.

    All share one scale, symmetric around zero: middle grey is 0, black and white (or full colour) the largest
    magnitude of all.

    Args:
        weights: `[O, C, h, w] float`; with other than 1 or 3 channels each filter is a row of C planes, or a column
            where there are more filters than channels. With no filters (O = 0) the figure says that there are none.
        title: names the model and the data set.

    Raises:
        ValueError: not four dimensions, or values that are not finite.
    """
    if weights.ndim != 4 or not np.isfinite(weights).all():
        raise ValueError(f"Filters must be [O, C, h, w] and finite, got {list(weights.shape)}.")
    filters, channels = weights.shape[:2]
    if weights.size == 0:
        return only_words("No filters: the network's first layer is no convolution.", title)
    largest = float(np.abs(weights).max(initial=0.0))
    # All zero is drawn as middle grey.
    levels = np.round(127.5 + 127.5 * weights / (largest or 1.0)).astype(np.uint8)
    if channels == 3:
        pictures, columns, what = levels.transpose(0, 2, 3, 1), _columns(filters), "a colour picture"
    elif channels == 1:
        pictures, columns, what = _grey(levels), _columns(filters), "a grey plane"
    elif filters > channels:
        pictures, columns, what = _grey(levels.swapaxes(0, 1)), filters, "a column of grey planes, one a channel"
    else:
        pictures, columns, what = _grey(levels), channels, "a row of grey planes, one a channel"
    rows = -(-len(pictures) // columns)

    cell = float(np.clip(12.0 / columns, 0.35, 1.6))
    figure = new_figure(max(cell * columns + 0.3, 6.0), cell * rows + 1.0, title)
    axes = figure.subplots()
    show(axes, tile(list(pictures), columns, pixels=round(150 * cell), gap=0.05), rows, columns)
    axes.set_anchor("N")
    axes.set_xlabel(
        f"each filter is {what}; middle grey is 0, the ends are -{largest:.2g} and {largest:.2g}",
        fontsize=SMALL, color=QUIET, family=FONT,
    )  # fmt: skip
    return figure


def _grey(levels: np.ndarray) -> np.ndarray:
    return levels.reshape(-1, *levels.shape[2:], 1).repeat(3, axis=3)


def _columns(filters: int) -> int:
    """Choose a few full rows over a ragged square: 6 -> 6, 16 -> 8, 64 -> 16."""
    if filters <= 10:
        return filters
    widest = 16 if filters > 32 else 8
    fitting = [columns for columns in range(widest, widest // 2, -1) if filters % columns == 0]
    return fitting[0] if fitting else widest
