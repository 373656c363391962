"""How all of a sweep's jobs went, epoch by epoch, on one axis."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cifar_pipeline.reporting.comparison.groups import FINISHED, Comparison, Group, groups, text, wants_log
from cifar_pipeline.reporting.comparison.tables import headings, short, shorten
from cifar_pipeline.reporting.metric_names import in_words, is_fraction
from cifar_pipeline.reporting.style import (
    COLOURS,
    FONT,
    INK,
    OTHERS,
    QUIET,
    SMALL,
    in_percent,
    new_figure,
    only_words,
    plain_axes,
)  # fmt: skip

# With more lines than that, only the best are told apart.
MOST, BEST = 12, 8


def curves(comparison: Comparison) -> Figure:
    """Draw the metric against the epoch, a line per group, labelled where it ends; a band shows the seeds' deviation.

    A line is the mean over the finished members, as far as all of them go; of a group where nothing finished, over all.
    Beyond twelve lines, the eight best are in colour and the others are grey.
    """
    metric = comparison.metric
    title = f"{in_words(metric).capitalize()} by epoch: {comparison.title}"
    drawn = [(group, table) for group in groups(comparison) if len(table := _by_epoch(comparison, group))]
    if not drawn:
        return only_words("No epoch has ended yet.", title)
    figure = new_figure(11.0, 5.6, title)
    axes = figure.subplots()
    over = ": mean and standard deviation" if any(table.shape[1] > 1 for _, table in drawn) else ""
    plain_axes(axes, in_words(metric).capitalize() + over, x="epoch")
    if is_fraction(metric):
        in_percent(axes.yaxis)
    elif wants_log(value for _, table in drawn for value in table.mean(axis=1)):
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))

    told_apart = drawn if len(drawn) <= MOST else drawn[:BEST]
    labels: list[tuple[float, float, str, str]] = []
    for place, (group, table) in reversed(list(enumerate(drawn))):
        if place >= len(told_apart):
            _draw(axes, table, OTHERS, "-", band=False)
            continue
        colour, style = COLOURS[place % len(COLOURS)], "-" if place < len(COLOURS) else (0, (4, 2))
        _draw(axes, table, colour, style, band=True)
        if len(drawn) == 1 and table.shape[1] > 1:
            for member in table:
                axes.plot(table.index, table[member], color=colour, linewidth=0.8, alpha=0.6)
        labels.append((float(table.index[-1]), float(table.iloc[-1].mean()), _name(group), colour))
    lowest, highest = (end(float(end(table.index)) for _, table in drawn) for end in (min, max))
    margin = max(0.3, 0.02 * (highest - lowest))
    axes.set_xlim(lowest - margin, highest + margin)
    _label(axes, labels, ", ".join(headings(comparison.choices)), len(drawn) - len(told_apart))
    return figure


def _by_epoch(comparison: Comparison, group: Group) -> pd.DataFrame:
    """Put the members' metric side by side, a row per epoch that all of them reached."""
    finished = [member for member in group.members if text(member["status"]) == FINISHED]
    columns = {}
    for member in finished or group.members:
        history = comparison.histories.get(text(member.get("run_id")))
        if history is None or comparison.metric not in history or "epoch" not in history:
            continue
        values = pd.to_numeric(history[comparison.metric], errors="coerce").to_numpy(float)
        column = pd.Series(values, index=history["epoch"].to_numpy(float))
        column = column[np.isfinite(column.to_numpy())]
        if len(column):
            # An epoch that was begun twice counts as it was ended.
            columns[text(member["run_id"])] = column[~column.index.duplicated(keep="last")]
    table = pd.DataFrame(columns).sort_index()
    together = table.dropna()
    return together if len(together) else table.iloc[:, :1].dropna()


def _draw(axes: Axes, table: pd.DataFrame, colour: str, style: object, band: bool) -> None:
    mean = table.mean(axis=1)
    few = len(table) <= 30 and band
    axes.plot(table.index, mean, color=colour, linestyle=style, linewidth=2 if band else 1.2, marker="o" if few else "",
              markersize=4)  # fmt: skip
    if band and table.shape[1] > 1:
        deviation = table.std(axis=1)
        axes.fill_between(table.index, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)


def _name(group: Group) -> str:
    name = shorten(", ".join(short(value) for value in group.values), 40)
    if not name:
        seeds = len(group.members)
        name = text(group.members[0].get("name")) if seeds == 1 else f"mean of {seeds} seeds"
    # What did not finish ends where its line does.
    return name if group.count(FINISHED) else f"{name} ({text(group.members[0]['status']).lower()})"


def _label(axes: Axes, labels: list[tuple[float, float, str, str]], heading: str, others: int) -> None:
    """Write each line's name beside its end, moved up or down until no two overlap, and a thin line from it."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    if axes.get_yscale() == "log":
        low, high = math.log(low), math.log(high)
        height = [(math.log(value) - low) / (high - low) for _, value, _, _ in labels]
    else:
        height = [(value - low) / (high - low) for _, value, _, _ in labels]
    upwards = sorted(range(len(labels)), key=lambda place: height[place])
    right = axes.get_xlim()[1]
    leader = {"arrowstyle": "-", "linewidth": 0.7, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)}
    for place, level in zip(upwards, apart([height[place] for place in upwards], 0.052), strict=True):
        epoch, value, name, colour = labels[place]
        axes.plot([epoch, right], [value, value], color=colour, linewidth=0.7, linestyle=":", zorder=1)
        axes.annotate(
            name, xy=(right, value), xycoords="data", xytext=(1.035, level), textcoords="axes fraction",
            va="center", fontsize=SMALL, color=colour, family=FONT, annotation_clip=False, parse_math=False,
            arrowprops={**leader, "color": colour},
        )  # fmt: skip
    if heading:
        axes.text(1.035, 1.03, heading, transform=axes.transAxes, fontsize=SMALL, color=QUIET, family=FONT,
                  va="bottom", parse_math=False)  # fmt: skip
    if others:
        axes.text(0.01, 0.99, f"grey: {others} more", transform=axes.transAxes, fontsize=SMALL, color=INK, family=FONT,
                  va="top")  # fmt: skip


def apart(levels: list[float], gap: float) -> list[float]:
    """Move ascending `levels` so that neighbours are at least `gap` apart, little, and within 0 to 1 if they fit."""
    blocks: list[list[float]] = []  # Of each: the sum of what its levels wish its lowest to be, and their number.
    for level in levels:
        blocks.append([level, 1.0])
        while len(blocks) > 1 and _lowest(blocks[-2], gap) + gap * blocks[-2][1] > _lowest(blocks[-1], gap):
            wish, number = blocks.pop()
            blocks[-1][0] += wish - gap * blocks[-1][1] * number
            blocks[-1][1] += number
    return [_lowest(block, gap) + gap * place for block in blocks for place in range(int(block[1]))]


def _lowest(block: list[float], gap: float) -> float:
    wish, number = block
    return max(0.0, min(wish / number, 1 - gap * (number - 1)))
