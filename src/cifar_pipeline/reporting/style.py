"""The one look of the project's figures.

Figures are made without pyplot: no global state, no windows, no leak when many are made, safe in threads.
"""

import os
import textwrap
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.text import escape_control

# Okabe and Ito's blue and vermilion: apart for every kind of colour vision, and in print.
TRAIN = "#0072B2"
VALIDATION = "#D55E00"
# For many lines: all of theirs, with a brown for the yellow, which white swallows; and for what is not told apart.
COLORS = (TRAIN, VALIDATION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#262626", "#8B6B4A")
OTHER_COLOR = "#C9C9C9"
TEXT_COLOR = "#262626"
MUTED = "#6B6B6B"
GRID = "#D9D9D9"
# Behind letters that hide what is below them. White letters are pure white: a page may turn this dark, and not those.
BACKGROUND = "#FEFEFE"
# Letters on filled cells, which are as light on a dark page.
TEXT_ON_CELL, VALIDATION_ON_CELL = "#242424", "#BF5300"
# Comes with matplotlib, so images are the same on every machine.
FONT = "DejaVu Sans"
TITLE, HEADING, TEXT, SMALL = 15.0, 12.0, 11.0, 10.0


def new_figure(width: float, height: float, title: str) -> Figure:
    """Make an empty figure of `width` x `height` inches under its title, which is wrapped where it is too long."""
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    size = TITLE * font_scale(width)
    # A bold letter is about 0.65 of its size wide; a point is 1/72 inch.
    letters = max(20, int(width * 72 / (0.65 * size)))
    wrapped = "\n".join(textwrap.wrap(escape_control(title), letters, break_long_words=False))
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
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    return figure


def font_scale(width: float) -> float:
    """Say by how much letters grow on a figure of `width` inches: the larger, the more it is scaled down when shown."""
    return min(2.0, max(1.0, width / 14))


def clean_axes(axes: Axes, heading: str = "", x: str = "", y: str = "") -> None:
    """Draw `axes` for curves: open at the top and right, faint horizontal rules, what it shows as a heading."""
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
    """Write an axis of fractions in per cent."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))


def image_axes(axes: Axes) -> None:
    """Draw `axes` for images: no frame, no ticks."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=SMALL, colors=TEXT_COLOR, labelfontfamily=FONT)
    axes.set_xticks([])
    axes.set_yticks([])


def message_figure(line: str, title: str) -> Figure:
    """Make a figure that says, in one line, why there is nothing to draw."""
    figure = new_figure(9.0, 2.0, title)
    axes = figure.subplots()
    axes.set_axis_off()
    axes.text(0.5, 0.5, line, ha="center", va="center", fontsize=HEADING, color=TEXT_COLOR, family=FONT)
    return figure


def save(figure: Figure, path: str | os.PathLike[str], dpi: int = 150) -> None:
    """Write `figure` as a PNG, atomically. The same figure gives the same bytes: no date, no version inside.

    Args:
        dpi: pixels per inch of the figure's size.
    """
    with atomic_write(Path(path)) as partial:
        figure.savefig(partial, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
