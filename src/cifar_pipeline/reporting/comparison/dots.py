"""Any number of swept choices: a row for each combination, best first, its seeds and their mean as dots."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cifar_pipeline.reporting.comparison.groups import SEED, Comparison, Group, groups, text, wants_log
from cifar_pipeline.reporting.comparison.tables import (
    headings,
    measured,
    missing,
    short,
    status_of,
)
from cifar_pipeline.reporting.metric_names import in_words, is_fraction
from cifar_pipeline.reporting.style import (
    FONT,
    INK,
    PAPER,
    QUIET,
    RULE,
    SMALL,
    TRAIN,
    VALIDATION,
    in_percent,
    new_figure,
    only_words,
    plain_axes,
)  # fmt: skip

LETTERS = "DejaVu Sans Mono"
MOST = 40


def dots(comparison: Comparison) -> Figure:
    """Draw the groups, best first, up to 40 of them: the values on the left, dots, the metric written on the right.

    Where the seed alone is swept, each seed is a row, and their mean and standard deviation are a line and a band.
    """
    seeds_alone = not comparison.choices and comparison.over_seeds
    found = groups(comparison, apart=seeds_alone)
    if not found:
        return only_words("The sweep has no points yet.", comparison.title)
    metric, shown = comparison.metric, found[:MOST]
    header = headings(comparison.choices) or [SEED if seeds_alone else "name"]
    labels = [[short(value) for value in group.values or (text(group.members[0]["name"]),)] for group in shown]
    widths = [max(map(len, column)) for column in zip(header, *labels, strict=True)]
    margin = 0.095 * (sum(widths) + 2 * len(widths))
    figure = new_figure(max(9.0, margin + 7.5), 0.34 * len(shown) + 2.2, comparison.title)
    axes = figure.subplots()
    plain_axes(axes, in_words(metric).capitalize() + _what(comparison, found))
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=RULE, linewidth=0.8)
    axes.set_ylim(len(shown) - 0.4, -1.4)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *labels)]
    axes.set_yticks(range(-1, len(shown)), lines, fontsize=SMALL, family=LETTERS, color=INK, parse_math=False)
    axes.get_yticklabels()[0].set_color(QUIET)

    for row, group in enumerate(shown):
        _row(axes, row, group, comparison, best=row == 0 and not seeds_alone)
    if seeds_alone:
        _mean_of_all(axes, groups(comparison)[0], metric)
    if not any(group.numbers(metric) for group in shown):
        axes.set_xticks([])
    elif is_fraction(metric):
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7))
        in_percent(axes.xaxis)
    elif wants_log(group.mean(metric) for group in shown):
        axes.set_xscale("log")
    axes.margins(x=0.06)
    if len(found) > MOST:
        axes.set_xlabel(f"and {len(found) - MOST} more, in comparison.csv", fontsize=SMALL, color=QUIET, family=FONT)
    return figure


def _row(axes: Axes, row: int, group: Group, comparison: Comparison, best: bool) -> None:
    metric, values = comparison.metric, group.numbers(comparison.metric)
    if not values:
        axes.text(0.01, row, status_of(group, metric, 60), va="center", fontsize=SMALL, color=VALIDATION, family=FONT,
                  transform=axes.get_yaxis_transform(), parse_math=False, zorder=4,
                  bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1})  # fmt: skip
        return
    mean, deviation = group.mean(metric), group.deviation(metric)
    colour = VALIDATION if best else TRAIN
    if len(values) > 1:
        axes.plot([mean - deviation, mean + deviation], [row, row], color=colour, linewidth=3, alpha=0.35)
        axes.plot(values, [row] * len(values), linestyle="", marker="o", markersize=4, color=colour, alpha=0.5)
    axes.plot([mean], [row], marker="o", markersize=8, color=colour)
    words = ", ".join(filter(None, (measured(group, metric, len(group.members) > 1), missing(group, metric))))
    axes.text(1.02, row, words, va="center", fontsize=SMALL, family=FONT, color=INK,
              fontweight="bold" if best else "normal", transform=axes.get_yaxis_transform())  # fmt: skip


def _mean_of_all(axes: Axes, group: Group, metric: str) -> None:
    mean, deviation = group.mean(metric), group.deviation(metric)
    if math.isfinite(mean):
        axes.axvline(mean, color=QUIET, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    if math.isfinite(deviation):
        axes.axvspan(mean - deviation, mean + deviation, color=QUIET, alpha=0.12, linewidth=0, zorder=0)
        axes.text(1.02, -1, measured(group, metric, True), va="center", fontsize=SMALL, family=FONT, color=QUIET,
                  transform=axes.get_yaxis_transform())  # fmt: skip


def _what(comparison: Comparison, found: list[Group]) -> str:
    if any(len(group.numbers(comparison.metric)) > 1 for group in found) or not comparison.choices:
        return ": mean ± standard deviation (seeds)" if comparison.over_seeds else ""
    return ""
