"""Two swept choices as a grid: a cell per combination, its value written in it."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cifar_pipeline.reporting.comparison.groups import (
    FINISHED,
    Comparison,
    Group,
    all_numeric,
    groups,
    number,
    text,
)  # fmt: skip
from cifar_pipeline.reporting.comparison.tables import figures, missing, short
from cifar_pipeline.reporting.metric_names import in_words, is_fraction, lower_is_better
from cifar_pipeline.reporting.style import (
    FONT,
    HEADING,
    INK_ON_CELL,
    QUIET,
    SMALL,
    TEXT,
    VALIDATION,
    VALIDATION_ON_CELL,
    new_figure,
    picture_axes,
)  # fmt: skip

MOST = 30


def is_grid(comparison: Comparison) -> bool:
    """Say whether the two swept columns' combinations fill a grid well enough to be drawn as one."""
    found = groups(comparison)
    rows, columns = ({group.values[place] for group in found} for place in (0, 1))
    cells = len(rows) * len(columns)
    return 0 < cells <= max(12, 2 * len(found)) and len(rows) <= MOST and len(columns) <= MOST


def heat_map(comparison: Comparison) -> Figure:
    """Draw the first swept column downwards and the second across, the darker the better, the best cell framed.

    Numbers are put in order; words stay as the sweep lists them. A cell has the mean over the seeds and, under it, the
    standard deviation or how many seeds failed. One where nothing finished says so; a combination that the sweep does
    not have is empty.
    """
    found = groups(comparison)
    metric = comparison.metric
    listed = {(group.values[0], group.values[1]): group for group in groups(comparison)}
    rows, columns = (ordered(text(value) for value in comparison.points[column]) for column in comparison.choices)

    width = min(1.7, max(0.95, 12 / len(columns)))
    height = 0.72 if len(rows) <= 12 else 0.55
    margin = 0.12 * max(len(short(row)) for row in rows) + 0.6
    whole = max(8.0, len(columns) * width + margin + 0.4)
    figure = new_figure(whole, max(3.2, len(rows) * height + 1.9), comparison.title)
    width = (whole - margin - 0.4) / len(columns)
    axes = figure.subplots()
    picture_axes(axes)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_title(_heading(comparison, found), loc="left", fontsize=SMALL, color=QUIET, family=FONT, pad=10)
    for set_ticks, values, size in ((axes.set_xticks, columns, 10 * width), (axes.set_yticks, rows, 99)):
        labels = [short(value) for value in values]
        turned = 30 if max(map(len, labels)) > size else 0
        set_ticks(
            range(len(values)), labels, rotation=turned, ha="right" if turned or size == 99 else "center",
            fontsize=TEXT, family=FONT, parse_math=False,
        )  # fmt: skip
    axes.set_ylabel(comparison.choices[0], fontsize=TEXT, color=QUIET, family=FONT, parse_math=False)
    axes.set_xlabel(comparison.choices[1], fontsize=TEXT, color=QUIET, family=FONT, parse_math=False)

    shades = _shades({cell: group.mean(metric) for cell, group in listed.items()}, lower_is_better(metric))
    best = found[0].values if math.isfinite(found[0].mean(metric)) else None
    for (row, column), group in listed.items():
        x, y = columns.index(column), rows.index(row)
        _draw_cell(axes, x, y, shades[(row, column)], cell_words(group, metric))
        if group.values == best:
            axes.add_patch(_square(x, y, facecolor="none", edgecolor=VALIDATION, linewidth=2.5))
    return figure


def _draw_cell(axes: Axes, x: int, y: int, shade: float, words: tuple[str, str]) -> None:
    """Fill a cell by its shade and write in it; without a shade it is hatched."""
    known = math.isfinite(shade)
    fill, hatch = (colormaps["Blues"](0.08 + 0.8 * shade), None) if known else ("#F4F4F4", "////")
    axes.add_patch(_square(x, y, facecolor=fill, edgecolor="#C8C8C8", hatch=hatch, linewidth=0))
    value, note = words
    ink = "white" if known and shade > 0.62 else INK_ON_CELL if known else VALIDATION_ON_CELL
    boxed = None if known else {"facecolor": "#F4F4F4", "edgecolor": "none", "pad": 2}
    axes.text(x, y - (0.14 if note else 0), value, ha="center", va="center", fontsize=HEADING if known else SMALL,
              color=ink, family=FONT, bbox=boxed)  # fmt: skip
    if note:
        axes.text(x, y + 0.24, note, ha="center", va="center", fontsize=SMALL - 1, color=ink, family=FONT,
                  bbox=boxed)  # fmt: skip


def _square(x: int, y: int, **look: Any) -> Rectangle:
    return Rectangle((x - 0.48, y - 0.47), 0.96, 0.94, **look)


def cell_words(group: Group, metric: str) -> tuple[str, str]:
    """Say what a cell holds: its value, and the line under it."""
    mean, deviation = group.mean(metric), group.deviation(metric)
    if math.isnan(mean):
        statuses = dict.fromkeys(str(member["status"]).lower() for member in group.members)
        return "no value" if set(statuses) == {FINISHED.lower()} else ", ".join(statuses), ""
    spread = f"± {figures(metric, deviation)}" if math.isfinite(deviation) else ""
    return figures(metric, mean, 1), ", ".join(filter(None, (spread, missing(group, metric))))


def ordered(values: Iterable[str]) -> list[str]:
    """List the different values: numbers in order, words as they come."""
    different = list(dict.fromkeys(values))
    return sorted(different, key=number) if all_numeric(different) else different


def _heading(comparison: Comparison, found: list[Group]) -> str:
    unit = " in %" if is_fraction(comparison.metric) else ""
    seeds = {len(group.members) for group in found}
    over = f", mean ± standard deviation over {max(seeds)} seeds" if comparison.over_seeds and max(seeds) > 1 else ""
    return f"{in_words(comparison.metric).capitalize()}{unit}{over}"


def _shades(means: dict[tuple[str, str], float], reverse: bool) -> dict[tuple[str, str], float]:
    """Bring the means to [0, 1], 1 the best; NaN stays."""
    known = np.array([mean for mean in means.values() if math.isfinite(mean)])
    if not known.size:
        return dict.fromkeys(means, math.nan)
    low, high = float(known.min()), float(known.max())
    if high == low:
        return {cell: 0.4 if math.isfinite(mean) else math.nan for cell, mean in means.items()}
    return {cell: ((high - mean) if reverse else (mean - low)) / (high - low) for cell, mean in means.items()}
