"""How all of a sweep's jobs went, epoch by epoch, on one axis.

Any number of swept choices: a row for each combination, best first, its seeds and their mean as dots.

Two swept choices as a grid: a cell per combination, its value written in it.

A swept number: the metric against it, a line for each choice that is swept beside it.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from cifar_pipeline.reporting.metrics import display_name, is_fraction, lower_is_better
from cifar_pipeline.reporting.style import (
    BACKGROUND,
    COLORS,
    FONT,
    GRID,
    HEADING,
    MUTED,
    OTHER_COLOR,
    SMALL,
    TEXT,
    TEXT_COLOR,
    TEXT_ON_CELL,
    TRAIN,
    VALIDATION,
    VALIDATION_ON_CELL,
    clean_axes,
    format_percent,
    image_axes,
    message_figure,
    new_figure,
)
from cifar_pipeline.reporting.sweep_comparison import (
    FINISHED,
    SEED_KEY,
    Comparison,
    TrialGroup,
    all_numeric,
    cell_text,
    format_mean_std,
    format_missing,
    format_number,
    groups,
    headings,
    prefers_log_scale,
    shorten_value,
    status_of,
    to_float,
    truncate,
)

# With more lines than that, only the best are told apart.
MAX_CURVES, NUM_BEST = 12, 8


def curves(comparison: Comparison) -> Figure:
    """Draw the metric against the epoch, a line per group, labelled where it ends; a band shows the seeds' deviation.

    A line is the mean over the finished members, as far as all of them go; of a group where nothing finished, over all.
    Beyond twelve lines, the eight best are in colour and the others are grey.
    """
    metric = comparison.metric
    title = f"{display_name(metric).capitalize()} by epoch: {comparison.title}"
    drawn = [(group, table) for group in groups(comparison) if len(table := _by_epoch(comparison, group))]
    if not drawn:
        return message_figure("No epoch has ended yet.", title)
    figure = new_figure(11.0, 5.6, title)
    axes = figure.subplots()
    over = ": mean and standard deviation" if any(table.shape[1] > 1 for _, table in drawn) else ""
    clean_axes(axes, display_name(metric).capitalize() + over, x="epoch")
    if is_fraction(metric):
        format_percent(axes.yaxis)
    elif prefers_log_scale(value for _, table in drawn for value in table.mean(axis=1)):
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))

    told_apart = drawn if len(drawn) <= MAX_CURVES else drawn[:NUM_BEST]
    labels: list[tuple[float, float, str, str]] = []
    for place, (group, table) in reversed(list(enumerate(drawn))):
        if place >= len(told_apart):
            _draw(axes, table, OTHER_COLOR, "-", band=False)
            continue
        colour, style = COLORS[place % len(COLORS)], "-" if place < len(COLORS) else (0, (4, 2))
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


def _by_epoch(comparison: Comparison, group: TrialGroup) -> pd.DataFrame:
    """Put the members' metric side by side, a row per epoch that all of them reached."""
    finished = [member for member in group.members if cell_text(member["status"]) == FINISHED]
    columns = {}
    for member in finished or group.members:
        history = comparison.histories.get(cell_text(member.get("run_id")))
        if history is None or comparison.metric not in history or "epoch" not in history:
            continue
        values = pd.to_numeric(history[comparison.metric], errors="coerce").to_numpy(float)
        column = pd.Series(values, index=history["epoch"].to_numpy(float))
        column = column[np.isfinite(column.to_numpy())]
        if len(column):
            # An epoch that was begun twice counts as it was ended.
            columns[cell_text(member["run_id"])] = column[~column.index.duplicated(keep="last")]
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


def _name(group: TrialGroup) -> str:
    name = truncate(", ".join(shorten_value(value) for value in group.values), 40)
    if not name:
        seeds = len(group.members)
        name = cell_text(group.members[0].get("name")) if seeds == 1 else f"mean of {seeds} seeds"
    # What did not finish ends where its line does.
    return name if group.count(FINISHED) else f"{name} ({cell_text(group.members[0]['status']).lower()})"


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
    for place, level in zip(upwards, spread_labels([height[place] for place in upwards], 0.052), strict=True):
        epoch, value, name, colour = labels[place]
        axes.plot([epoch, right], [value, value], color=colour, linewidth=0.7, linestyle=":", zorder=1)
        axes.annotate(
            name, xy=(right, value), xycoords="data", xytext=(1.035, level), textcoords="axes fraction",
            va="center", fontsize=SMALL, color=colour, family=FONT, annotation_clip=False, parse_math=False,
            arrowprops={**leader, "color": colour},
        )  # fmt: skip
    if heading:
        axes.text(1.035, 1.03, heading, transform=axes.transAxes, fontsize=SMALL, color=MUTED, family=FONT,
                  va="bottom", parse_math=False)  # fmt: skip
    if others:
        axes.text(0.01, 0.99, f"grey: {others} more", transform=axes.transAxes, fontsize=SMALL, color=TEXT_COLOR, family=FONT,
                  va="top")  # fmt: skip


def spread_labels(levels: list[float], gap: float) -> list[float]:
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


MAX_LABEL_LENGTH = "DejaVu Sans Mono"
MAX_ROWS = 40


def dots(comparison: Comparison) -> Figure:
    """Draw the groups, best first, up to 40 of them: the values on the left, dots, the metric written on the right.

    Where the seed alone is swept, each seed is a row, and their mean and standard deviation are a line and a band.
    """
    seeds_alone = not comparison.choices and comparison.averages_seeds
    found = groups(comparison, apart=seeds_alone)
    if not found:
        return message_figure("The sweep has no trials yet.", comparison.title)
    metric, shown = comparison.metric, found[:MAX_ROWS]
    header = headings(comparison.choices) or [SEED_KEY if seeds_alone else "name"]
    labels = [
        [shorten_value(value) for value in group.values or (cell_text(group.members[0]["name"]),)] for group in shown
    ]
    widths = [max(map(len, column)) for column in zip(header, *labels, strict=True)]
    margin = 0.095 * (sum(widths) + 2 * len(widths))
    figure = new_figure(max(9.0, margin + 7.5), 0.34 * len(shown) + 2.2, comparison.title)
    axes = figure.subplots()
    clean_axes(axes, display_name(metric).capitalize() + _subtitle(comparison, found))
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_ylim(len(shown) - 0.4, -1.4)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *labels)]
    axes.set_yticks(
        range(-1, len(shown)), lines, fontsize=SMALL, family=MAX_LABEL_LENGTH, color=TEXT_COLOR, parse_math=False
    )
    axes.get_yticklabels()[0].set_color(MUTED)

    for row, group in enumerate(shown):
        _row(axes, row, group, comparison, best=row == 0 and not seeds_alone)
    if seeds_alone:
        _mean_of_all(axes, groups(comparison)[0], metric)
    if not any(group.numbers(metric) for group in shown):
        axes.set_xticks([])
    elif is_fraction(metric):
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7))
        format_percent(axes.xaxis)
    elif prefers_log_scale(group.mean(metric) for group in shown):
        axes.set_xscale("log")
    axes.margins(x=0.06)
    if len(found) > MAX_ROWS:
        axes.set_xlabel(
            f"and {len(found) - MAX_ROWS} more, in comparison.csv", fontsize=SMALL, color=MUTED, family=FONT
        )
    return figure


def _row(axes: Axes, row: int, group: TrialGroup, comparison: Comparison, best: bool) -> None:
    metric, values = comparison.metric, group.numbers(comparison.metric)
    if not values:
        axes.text(0.01, row, status_of(group, metric, 60), va="center", fontsize=SMALL, color=VALIDATION, family=FONT,
                  transform=axes.get_yaxis_transform(), parse_math=False, zorder=4,
                  bbox={"facecolor": BACKGROUND, "edgecolor": "none", "pad": 1})  # fmt: skip
        return
    mean, deviation = group.mean(metric), group.std(metric)
    colour = VALIDATION if best else TRAIN
    if len(values) > 1:
        axes.plot([mean - deviation, mean + deviation], [row, row], color=colour, linewidth=3, alpha=0.35)
        axes.plot(values, [row] * len(values), linestyle="", marker="o", markersize=4, color=colour, alpha=0.5)
    axes.plot([mean], [row], marker="o", markersize=8, color=colour)
    words = ", ".join(
        filter(None, (format_mean_std(group, metric, len(group.members) > 1), format_missing(group, metric)))
    )
    axes.text(1.02, row, words, va="center", fontsize=SMALL, family=FONT, color=TEXT_COLOR,
              fontweight="bold" if best else "normal", transform=axes.get_yaxis_transform())  # fmt: skip


def _mean_of_all(axes: Axes, group: TrialGroup, metric: str) -> None:
    mean, deviation = group.mean(metric), group.std(metric)
    if math.isfinite(mean):
        axes.axvline(mean, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    if math.isfinite(deviation):
        axes.axvspan(mean - deviation, mean + deviation, color=MUTED, alpha=0.12, linewidth=0, zorder=0)
        axes.text(1.02, -1, format_mean_std(group, metric, True), va="center", fontsize=SMALL, family=FONT, color=MUTED,
                  transform=axes.get_yaxis_transform())  # fmt: skip


def _subtitle(comparison: Comparison, found: list[TrialGroup]) -> str:
    if any(len(group.numbers(comparison.metric)) > 1 for group in found) or not comparison.choices:
        return ": mean ± standard deviation (seeds)" if comparison.averages_seeds else ""
    return ""


MAX_CELLS = 30


def is_grid(comparison: Comparison) -> bool:
    """Say whether the two swept columns' combinations fill a grid well enough to be drawn as one."""
    found = groups(comparison)
    rows, columns = ({group.values[place] for group in found} for place in (0, 1))
    cells = len(rows) * len(columns)
    return 0 < cells <= max(12, 2 * len(found)) and len(rows) <= MAX_CELLS and len(columns) <= MAX_CELLS


def heat_map(comparison: Comparison) -> Figure:
    """Draw the first swept column downwards and the second across, the darker the better, the best cell framed.

    Numbers are put in order; words stay as the sweep lists them. A cell has the mean over the seeds and, under it, the
    standard deviation or how many seeds failed. One where nothing finished says so; a combination that the sweep does
    not have is empty.
    """
    found = groups(comparison)
    metric = comparison.metric
    listed = {(group.values[0], group.values[1]): group for group in groups(comparison)}
    rows, columns = (
        sorted_values(cell_text(value) for value in comparison.trials[column]) for column in comparison.choices
    )

    width = min(1.7, max(0.95, 12 / len(columns)))
    height = 0.72 if len(rows) <= 12 else 0.55
    margin = 0.12 * max(len(shorten_value(row)) for row in rows) + 0.6
    whole = max(8.0, len(columns) * width + margin + 0.4)
    figure = new_figure(whole, max(3.2, len(rows) * height + 1.9), comparison.title)
    width = (whole - margin - 0.4) / len(columns)
    axes = figure.subplots()
    image_axes(axes)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_title(_heading(comparison, found), loc="left", fontsize=SMALL, color=MUTED, family=FONT, pad=10)
    for set_ticks, values, size in ((axes.set_xticks, columns, 10 * width), (axes.set_yticks, rows, 99)):
        labels = [shorten_value(value) for value in values]
        turned = 30 if max(map(len, labels)) > size else 0
        set_ticks(
            range(len(values)), labels, rotation=turned, ha="right" if turned or size == 99 else "center",
            fontsize=TEXT, family=FONT, parse_math=False,
        )  # fmt: skip
    axes.set_ylabel(comparison.choices[0], fontsize=TEXT, color=MUTED, family=FONT, parse_math=False)
    axes.set_xlabel(comparison.choices[1], fontsize=TEXT, color=MUTED, family=FONT, parse_math=False)

    shades = _color_levels({cell: group.mean(metric) for cell, group in listed.items()}, lower_is_better(metric))
    best = found[0].values if math.isfinite(found[0].mean(metric)) else None
    for (row, column), group in listed.items():
        x, y = columns.index(column), rows.index(row)
        _draw_cell(axes, x, y, shades[(row, column)], cell_labels(group, metric))
        if group.values == best:
            axes.add_patch(_square(x, y, facecolor="none", edgecolor=VALIDATION, linewidth=2.5))
    return figure


def _draw_cell(axes: Axes, x: int, y: int, shade: float, words: tuple[str, str]) -> None:
    """Fill a cell by its shade and write in it; without a shade it is hatched."""
    known = math.isfinite(shade)
    fill, hatch = (colormaps["Blues"](0.08 + 0.8 * shade), None) if known else ("#F4F4F4", "////")
    axes.add_patch(_square(x, y, facecolor=fill, edgecolor="#C8C8C8", hatch=hatch, linewidth=0))
    value, note = words
    ink = "white" if known and shade > 0.62 else TEXT_ON_CELL if known else VALIDATION_ON_CELL
    boxed = None if known else {"facecolor": "#F4F4F4", "edgecolor": "none", "pad": 2}
    axes.text(x, y - (0.14 if note else 0), value, ha="center", va="center", fontsize=HEADING if known else SMALL,
              color=ink, family=FONT, bbox=boxed)  # fmt: skip
    if note:
        axes.text(x, y + 0.24, note, ha="center", va="center", fontsize=SMALL - 1, color=ink, family=FONT,
                  bbox=boxed)  # fmt: skip


def _square(x: int, y: int, **look: Any) -> Rectangle:
    return Rectangle((x - 0.48, y - 0.47), 0.96, 0.94, **look)


def cell_labels(group: TrialGroup, metric: str) -> tuple[str, str]:
    """Say what a cell holds: its value, and the line under it."""
    mean, deviation = group.mean(metric), group.std(metric)
    if math.isnan(mean):
        statuses = dict.fromkeys(str(member["status"]).lower() for member in group.members)
        return "no value" if set(statuses) == {FINISHED.lower()} else ", ".join(statuses), ""
    spread = f"± {format_number(metric, deviation)}" if math.isfinite(deviation) else ""
    return format_number(metric, mean, 1), ", ".join(filter(None, (spread, format_missing(group, metric))))


def sorted_values(values: Iterable[str]) -> list[str]:
    """List the different values: numbers in order, words as they come."""
    different = list(dict.fromkeys(values))
    return sorted(different, key=to_float) if all_numeric(different) else different


def _heading(comparison: Comparison, found: list[TrialGroup]) -> str:
    unit = " in %" if is_fraction(comparison.metric) else ""
    seeds = {len(group.members) for group in found}
    over = (
        f", mean ± standard deviation over {max(seeds)} seeds" if comparison.averages_seeds and max(seeds) > 1 else ""
    )
    return f"{display_name(comparison.metric).capitalize()}{unit}{over}"


def _color_levels(means: dict[tuple[str, str], float], reverse: bool) -> dict[tuple[str, str], float]:
    """Bring the means to [0, 1], 1 the best; NaN stays."""
    known = np.array([mean for mean in means.values() if math.isfinite(mean)])
    if not known.size:
        return dict.fromkeys(means, math.nan)
    low, high = float(known.min()), float(known.max())
    if high == low:
        return {cell: 0.4 if math.isfinite(mean) else math.nan for cell, mean in means.items()}
    return {cell: ((high - mean) if reverse else (mean - low)) / (high - low) for cell, mean in means.items()}


LEGEND_LABELS = ("best", "no value")


def numeric_column(comparison: Comparison) -> int | None:
    """Pick the place of the swept number, where one of the one or two swept columns is one and the other isn't."""
    found = groups(comparison)
    places = range(len(comparison.choices))
    numeric = [place for place in places if all_numeric(group.values[place] for group in found)]
    return numeric[0] if len(numeric) == 1 and len(places) <= 2 else None


def line(comparison: Comparison) -> Figure:
    """Draw the metric against the swept number, on a logarithmic axis where the numbers ask for one (`wants_log`).

    Over seeds, the trials are means, the bars standard deviations, and each seed is a faint dot. What has no value is a
    cross on the lower edge. The best is ringed.
    """
    place = numeric_column(comparison)
    if place is None:
        raise ValueError(f"No single swept number among {', '.join(comparison.choices)}.")
    found, metric = groups(comparison), comparison.metric
    figure = new_figure(9.5, 5.2, comparison.title)
    axes = figure.subplots()
    spread = ": mean ± standard deviation" if any(len(group.numbers(metric)) > 1 for group in found) else ""
    clean_axes(axes, display_name(metric).capitalize() + spread, x=comparison.choices[place])
    written = sorted_values(group.values[place] for group in found)
    numbers = [to_float(value) for value in written]
    if prefers_log_scale(numbers):
        axes.set_xscale("log")
    if is_fraction(metric):
        format_percent(axes.yaxis)
    elif prefers_log_scale(group.mean(metric) for group in found):
        axes.set_yscale("log")

    series = list(dict.fromkeys(tuple(value for i, value in enumerate(g.values) if i != place) for g in found))
    for name, colour in zip(sorted(series), [*COLORS, *[MUTED] * len(series)], strict=False):
        mine = [g for g in found if tuple(value for i, value in enumerate(g.values) if i != place) == name]
        _draw_line(axes, sorted(mine, key=lambda group: to_float(group.values[place])), place, metric, colour, name)
    best = found[0]
    if math.isfinite(best.mean(metric)):
        axes.plot(
            [to_float(best.values[place])], [best.mean(metric)], marker="o", markersize=13, markerfacecolor="none",
            color=VALIDATION, markeredgewidth=2, label=LEGEND_LABELS[0], linestyle="", zorder=5,
        )  # fmt: skip
    _ticks(axes, written, numbers)
    _mark_missing(axes, found, place, metric)
    known = zip(*axes.get_legend_handles_labels(), strict=True)
    handles, labels = zip(*sorted(known, key=lambda item: item[1] in LEGEND_LABELS), strict=True)
    if len(handles) > 1 or LEGEND_LABELS[1] in labels:
        legend = axes.legend(
            handles, labels, frameon=False, labelcolor=TEXT_COLOR, prop={"family": FONT, "size": SMALL}, loc="upper left",
            bbox_to_anchor=(1.01, 1),
        )  # fmt: skip
        for label in legend.get_texts():
            label.set_parse_math(False)
    return figure


def _draw_line(axes: Axes, mine: list[TrialGroup], place: int, metric: str, colour: str, name: tuple[str, ...]) -> None:
    known = [group for group in mine if group.numbers(metric)]
    if not known:
        return
    places = [to_float(group.values[place]) for group in known]
    for x, group in zip(places, known, strict=True):
        seeds = group.numbers(metric)
        if len(seeds) > 1:
            axes.plot([x] * len(seeds), seeds, linestyle="", marker="o", markersize=4, color=colour, alpha=0.35)
    deviations = np.nan_to_num([group.std(metric) for group in known])
    axes.errorbar(
        places, [group.mean(metric) for group in known], yerr=deviations if deviations.any() else None, color=colour,
        linewidth=2, marker="o", markersize=6, capsize=4, elinewidth=1.5, label=shorten_value(name[0]) if name else "_mean",
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
        axes.set_xticks(numbers, [shorten_value(value) for value in written])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_minor_formatter(NullFormatter())


def _mark_missing(axes: Axes, found: list[TrialGroup], place: int, metric: str) -> None:
    missing = [to_float(group.values[place]) for group in found if not group.numbers(metric)]
    if not missing:
        return
    if len(missing) == len(found):
        axes.set_yticks([])
    axes.plot(
        missing, [0.02] * len(missing), linestyle="", marker="x", markersize=9, markeredgewidth=2.5, color=TEXT_COLOR,
        transform=axes.get_xaxis_transform(), label=LEGEND_LABELS[1], clip_on=False,
    )  # fmt: skip
