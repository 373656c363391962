"""Set colors, fonts and layout of all figures, and save them as PNG.

Figures are made without pyplot: no global state, no windows, no memory leak, thread-safe.
"""

import os
import textwrap
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from rich.cells import cell_len

from cifar_pipeline.reporting.fonts import fit_fonts
from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.text import escape_control

# Okabe and Ito's blue and vermilion: distinguishable with any color vision, and in print.
TRAIN = "#0072B2"
VALIDATION = "#D55E00"
# Their palette for many lines, with a brown instead of the yellow, which is too pale on white.
COLORS = (TRAIN, VALIDATION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#262626", "#8B6B4A")
# Of the lines beyond the palette.
OTHER_COLOR = "#C9C9C9"
TEXT_COLOR = "#262626"
MUTED = "#6B6B6B"
GRID = "#D9D9D9"
# White on light and on dark pages.
BACKGROUND = "white"
# Part of matplotlib, so figures are the same on every machine.
FONT = "DejaVu Sans"
TITLE, HEADING, TEXT, SMALL = 15.0, 12.0, 11.0, 10.0


def new_figure(width: float, height: float, title: str) -> Figure:
    """Create an empty figure of `width` x `height` inches with a title, which is wrapped to the width."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    style_figure(figure, width, height, title)
    return figure


def style_figure(figure: Figure, width: float, height: float, title: str, is_constrained: bool = True) -> None:
    """Set size, background, title and, if it is constrained, layout of a figure as `new_figure` does."""
    figure.set_size_inches(width, height)
    figure.set_facecolor(BACKGROUND)
    size = TITLE * font_scale(width)
    # A bold character is about 0.65 of its size wide; a point is 1/72 inch.
    characters = max(20, int(width * 72 / (0.65 * size)))
    escaped = escape_control(title)
    # Wide characters, such as Chinese ones, take twice the width, and their lines may break anywhere.
    columns = cell_len(escaped)
    is_wide = columns > len(escaped)
    if is_wide:
        characters = characters * len(escaped) // columns
    wrapped = "\n".join(textwrap.wrap(escaped, characters, break_long_words=is_wide))
    figure.suptitle(
        wrapped,
        x=0.15 / width,
        ha="left",
        fontsize=size,
        fontweight="bold",
        color=TEXT_COLOR,
        family=FONT,
        parse_math=False,
    )
    if is_constrained:
        figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)


def font_scale(width: float) -> float:
    """Return the font scale for a figure of `width` inches: large figures are shown scaled down."""
    return min(2.0, max(1.0, width / 14))


def clean_axes(axes: Axes, heading: str = "", x: str = "", y: str = "") -> None:
    """Style `axes` for curves: a heading, faint horizontal grid lines, no frame but the x-axis."""
    axes.set_title(heading, loc="left", fontsize=HEADING, color=TEXT_COLOR, family=FONT, parse_math=False, pad=10)
    axes.set_xlabel(x, fontsize=TEXT, color=MUTED, family=FONT)
    axes.set_ylabel(y, fontsize=TEXT, color=MUTED, family=FONT)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=SMALL, colors=MUTED, labelfontfamily=FONT, length=0)
    axes.tick_params(axis="x", length=3)


def format_percent(axis: Axis) -> None:
    """Label an axis of fractions in percent."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))


def image_axes(axes: Axes) -> None:
    """Style `axes` for images: no frame, no ticks."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=SMALL, colors=TEXT_COLOR, labelfontfamily=FONT)
    axes.set_xticks([])
    axes.set_yticks([])


def message_figure(message: str, title: str) -> Figure:
    """Create a figure with a one-line message, for when there is nothing to draw."""
    figure = new_figure(9.0, 2.0, title)
    axes = figure.subplots()
    axes.set_axis_off()
    axes.text(0.5, 0.5, message, ha="center", va="center", fontsize=HEADING, color=TEXT_COLOR, family=FONT)
    return figure


def save(figure: Figure, path: str | os.PathLike[str], dpi: int = 150) -> None:
    """Save `figure` as a PNG, atomically and without date or version: the same figure gives the same bytes.

    Args:
        dpi: pixels per inch.
    """
    fit_fonts(figure)
    with atomic_write(Path(path)) as tmp:
        figure.savefig(tmp, format="png", dpi=dpi, facecolor=BACKGROUND, metadata={"Software": None})
