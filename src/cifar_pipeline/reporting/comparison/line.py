"""A swept number: the metric against it, a line for each choice that is swept beside it."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from cifar_pipeline.reporting.comparison.groups import (
    Comparison,
    Group,
    all_numeric,
    groups,
    number,
    wants_log,
)  # fmt: skip
from cifar_pipeline.reporting.comparison.heat_map import ordered
from cifar_pipeline.reporting.comparison.tables import short
from cifar_pipeline.reporting.metric_names import in_words, is_fraction
from cifar_pipeline.reporting.style import (
    COLOURS,
    FONT,
    INK,
    QUIET,
    SMALL,
    VALIDATION,
    in_percent,
    new_figure,
    plain_axes,
)  # fmt: skip

MARKS = ("best", "no value")


def numeric_column(comparison: Comparison) -> int | None:
    """Pick the place of the swept number, where one of the one or two swept columns is one and the other isn't."""
    found = groups(comparison)
    places = range(len(comparison.choices))
    numeric = [place for place in places if all_numeric(group.values[place] for group in found)]
    return numeric[0] if len(numeric) == 1 and len(places) <= 2 else None


def line(comparison: Comparison) -> Figure:
    """Draw the metric against the swept number, on a logarithmic axis where the numbers ask for one (`wants_log`).

    Over seeds, the points are means, the bars standard deviations, and each seed is a faint dot. What has no value is a
    cross on the lower edge. The best is ringed.
    """
    place = numeric_column(comparison)
    if place is None:
        raise ValueError(f"No single swept number among {', '.join(comparison.choices)}.")
    found, metric = groups(comparison), comparison.metric
    figure = new_figure(9.5, 5.2, comparison.title)
    axes = figure.subplots()
    spread = ": mean ± standard deviation" if any(len(group.numbers(metric)) > 1 for group in found) else ""
    plain_axes(axes, in_words(metric).capitalize() + spread, x=comparison.choices[place])
    written = ordered(group.values[place] for group in found)
    numbers = [number(value) for value in written]
    if wants_log(numbers):
        axes.set_xscale("log")
    if is_fraction(metric):
        in_percent(axes.yaxis)
    elif wants_log(group.mean(metric) for group in found):
        axes.set_yscale("log")

    series = list(dict.fromkeys(tuple(value for i, value in enumerate(g.values) if i != place) for g in found))
    for name, colour in zip(sorted(series), [*COLOURS, *[QUIET] * len(series)], strict=False):
        mine = [g for g in found if tuple(value for i, value in enumerate(g.values) if i != place) == name]
        _draw(axes, sorted(mine, key=lambda group: number(group.values[place])), place, metric, colour, name)
    best = found[0]
    if math.isfinite(best.mean(metric)):
        axes.plot(
            [number(best.values[place])], [best.mean(metric)], marker="o", markersize=13, markerfacecolor="none",
            color=VALIDATION, markeredgewidth=2, label=MARKS[0], linestyle="", zorder=5,
        )  # fmt: skip
    _ticks(axes, written, numbers)
    _crosses(axes, found, place, metric)
    known = zip(*axes.get_legend_handles_labels(), strict=True)
    handles, labels = zip(*sorted(known, key=lambda item: item[1] in MARKS), strict=True)
    if len(handles) > 1 or MARKS[1] in labels:
        legend = axes.legend(
            handles, labels, frameon=False, labelcolor=INK, prop={"family": FONT, "size": SMALL}, loc="upper left",
            bbox_to_anchor=(1.01, 1),
        )  # fmt: skip
        for label in legend.get_texts():
            label.set_parse_math(False)
    return figure


def _draw(axes: Axes, mine: list[Group], place: int, metric: str, colour: str, name: tuple[str, ...]) -> None:
    known = [group for group in mine if group.numbers(metric)]
    if not known:
        return
    places = [number(group.values[place]) for group in known]
    for x, group in zip(places, known, strict=True):
        seeds = group.numbers(metric)
        if len(seeds) > 1:
            axes.plot([x] * len(seeds), seeds, linestyle="", marker="o", markersize=4, color=colour, alpha=0.35)
    deviations = np.nan_to_num([group.deviation(metric) for group in known])
    axes.errorbar(
        places, [group.mean(metric) for group in known], yerr=deviations if deviations.any() else None, color=colour,
        linewidth=2, marker="o", markersize=6, capsize=4, elinewidth=1.5, label=short(name[0]) if name else "_mean",
    )  # fmt: skip


def _ticks(axes: Axes, written: list[str], numbers: list[float]) -> None:
    low, high = min(numbers), max(numbers)
    if axes.get_xscale() == "log":
        axes.set_xlim(low / (high / low) ** 0.05, high * (high / low) ** 0.05)
        positions = np.log(numbers)
    else:
        margin = 0.05 * (high - low) or 0.5 * abs(high) or 1.0
        axes.set_xlim(low - margin, high + margin)
        positions = np.array(numbers)
    # The swept numbers themselves, where they don't run into each other.
    if len(numbers) == 1 or (np.diff(positions).min() > 0.055 * np.ptp(positions) and len(numbers) <= 14):
        axes.set_xticks(numbers, [short(value) for value in written])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_minor_formatter(NullFormatter())


def _crosses(axes: Axes, found: list[Group], place: int, metric: str) -> None:
    missing = [number(group.values[place]) for group in found if not group.numbers(metric)]
    if not missing:
        return
    if len(missing) == len(found):
        axes.set_yticks([])
    axes.plot(
        missing, [0.02] * len(missing), linestyle="", marker="x", markersize=9, markeredgewidth=2.5, color=INK,
        transform=axes.get_xaxis_transform(), label=MARKS[1], clip_on=False,
    )  # fmt: skip
