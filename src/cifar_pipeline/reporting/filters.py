"""The first layer's filters: what the network looks for in the pixels."""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from cifar_pipeline.reporting.mosaic import show, tile
from cifar_pipeline.reporting.style import FONT, QUIET, SMALL, new_figure, only_words

NONE = "No filters: the network's first layer is no convolution."


@dataclass(frozen=True)
class FilterPictures:
    """Filters as pictures `[M, h, w, 3] uint8`, in so many columns; `what` says how one of them is drawn.

    All share one scale, symmetric around zero: middle grey is 0, black and white (or full colour) `largest`, the
    largest magnitude of all.
    """

    pictures: np.ndarray
    columns: int
    what: str
    largest: float

    @property
    def legend(self) -> str:
        """How to read them."""
        return f"each filter is {self.what}; middle grey is 0, the ends are -{self.largest:.2g} and {self.largest:.2g}"


def filter_pictures(weights: np.ndarray) -> FilterPictures:
    """Draw each filter of a first convolution: one colour picture where it sees three channels, else grey planes.

    Args:
        weights: `[O, C, h, w] float`; with other than 1 or 3 channels each filter is a row of C planes, or a column
            where there are more filters than channels.

    Raises:
        ValueError: not four dimensions, or values that are not finite.
    """
    if weights.ndim != 4 or not np.isfinite(weights).all():
        raise ValueError(f"Filters must be [O, C, h, w] and finite, got {list(weights.shape)}.")
    filters, channels = weights.shape[:2]
    largest = float(np.abs(weights).max(initial=0.0))
    # All zero is drawn as middle grey.
    levels = np.round(127.5 + 127.5 * weights / (largest or 1.0)).astype(np.uint8)
    if channels == 3:
        return FilterPictures(levels.transpose(0, 2, 3, 1), _columns(filters), "a colour picture", largest)
    if channels == 1:
        return FilterPictures(_grey(levels), _columns(filters), "a grey plane", largest)
    if filters > channels:
        grey = _grey(levels.swapaxes(0, 1))
        return FilterPictures(grey, filters, "a column of grey planes, one a channel", largest)
    return FilterPictures(_grey(levels), channels, "a row of grey planes, one a channel", largest)


def first_layer(weights: np.ndarray, title: str) -> Figure:
    """Draw the filters of a first convolution as `filter_pictures` makes them.

    Args:
        weights: `[O, C, h, w] float`. With no filters (O = 0) the figure says that there are none.
        title: names the model and the data set.

    Raises:
        ValueError: not four dimensions, or values that are not finite.
    """
    drawn = filter_pictures(weights)
    if weights.size == 0:
        return only_words(NONE, title)
    rows, columns = -(-len(drawn.pictures) // drawn.columns), drawn.columns
    cell = float(np.clip(12.0 / columns, 0.35, 1.6))
    figure = new_figure(max(cell * columns + 0.3, 6.0), cell * rows + 1.0, title)
    axes = figure.subplots()
    show(axes, tile(list(drawn.pictures), columns, pixels=round(150 * cell), gap=0.05), rows, columns)
    axes.set_anchor("N")
    axes.set_xlabel(drawn.legend, fontsize=SMALL, color=QUIET, family=FONT)
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
