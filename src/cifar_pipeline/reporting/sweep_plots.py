"""Plot a sweep: curves by epoch, a dot plot of all trials, a heat map of two swept keys, a line over a swept number."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator
from rich.cells import cell_len, set_cell_size

from cifar_pipeline.reporting.metric_names import format_metric, heading_name, is_fraction
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
    TRAIN,
    VALIDATION,
    clean_axes,
    format_percent,
    image_axes,
    message_figure,
    new_figure,
)
from cifar_pipeline.reporting.sweep_comparison import (
    FINISHED,
    Comparison,
    TrialGroup,
    all_numeric,
    cell_text,
    group_name,
    group_trials,
    prefers_log_scale,
    to_float,
)
from cifar_pipeline.reporting.sweep_tables import (
    format_mean_std,
    format_missing,
    headings,
    shorten_value,
    status_of,
    truncate,
)

# With more lines than `MAX_CURVES`, only the best are colored.
MAX_CURVES, NUM_BEST = 12, 8


def curves(comparison: Comparison) -> Figure:
    """Draw the metric by epoch, a labeled line per group; a band shows the standard deviation.

    A line is the mean over the finished members (over all members if none finished), up to the last epoch that all of
    them reached. With more than twelve lines, the eight best are colored and the others gray.
    """
    metric = comparison.metric
    title = f"{heading_name(metric)} by epoch: {comparison.title}"
    tables = [(group, table) for group in comparison.groups if len(table := _by_epoch(comparison, group))]
    if not tables:
        return message_figure("No epoch is finished yet.", title)
    figure = new_figure(11.0, 5.6, title)
    axes = figure.subplots()
    averaged = any(table.shape[1] > 1 for _, table in tables)
    subtitle = f": mean and standard deviation over {comparison.over}" if averaged else ""
    clean_axes(axes, heading_name(metric) + subtitle, x="epoch")
    if is_fraction(metric):
        format_percent(axes.yaxis)
    elif prefers_log_scale(value for _, table in tables for value in table.mean(axis=1)):
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))

    num_colored = len(tables) if len(tables) <= MAX_CURVES else NUM_BEST
    labels: list[tuple[float, float, str, str]] = []
    for index, (group, table) in reversed(list(enumerate(tables))):
        if index >= num_colored:
            _draw(axes, table, OTHER_COLOR, "-", band=False)
            continue
        color, style = COLORS[index % len(COLORS)], "-" if index < len(COLORS) else (0, (4, 2))
        _draw(axes, table, color, style, band=True)
        if len(tables) == 1 and table.shape[1] > 1:
            for member in table:
                axes.plot(table.index, table[member], color=color, linewidth=0.8, alpha=0.6)
        labels.append((float(table.index[-1]), float(table.iloc[-1].mean()), _name(comparison, group), color))
    first, last = (end(float(end(table.index)) for _, table in tables) for end in (min, max))
    margin = max(0.3, 0.02 * (last - first))
    axes.set_xlim(first - margin, last + margin)
    _label_lines(axes, labels, ", ".join(headings(comparison.choices)), len(tables) - num_colored)
    return figure


def _by_epoch(comparison: Comparison, group: TrialGroup) -> pd.DataFrame:
    """Return the metric with a column per member and a row per epoch that all of them reached."""
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
            # Of an epoch that occurs twice, after a resume, the last row counts.
            columns[cell_text(member["run_id"])] = column[~column.index.duplicated(keep="last")]
    table = pd.DataFrame(columns).sort_index()
    common = table.dropna()
    return common if len(common) else table.iloc[:, :1].dropna()


def _draw(axes: Axes, table: pd.DataFrame, color: str, style: object, band: bool) -> None:
    mean = table.mean(axis=1)
    marker = "o" if len(table) <= 30 and band else ""
    axes.plot(
        table.index, mean, color=color, linestyle=style, linewidth=2 if band else 1.2, marker=marker, markersize=4
    )
    if band and table.shape[1] > 1:
        std = table.std(axis=1)
        axes.fill_between(table.index, mean - std, mean + std, color=color, alpha=0.15, linewidth=0)


def _name(comparison: Comparison, group: TrialGroup) -> str:
    name = truncate(", ".join(shorten_value(value) for value in group.values), 40)
    if not name:
        name = group_name(comparison, group)
    return name if group.count(FINISHED) else f"{name} ({cell_text(group.members[0]['status']).lower()})"


def _label_lines(axes: Axes, labels: list[tuple[float, float, str, str]], heading: str, num_gray: int) -> None:
    """Write each line's name to the right of its end, shifted vertically so that no two overlap, with a leader line."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    if axes.get_yscale() == "log":
        low, high = math.log(low), math.log(high)
        heights = [(math.log(value) - low) / (high - low) for _, value, _, _ in labels]
    else:
        heights = [(value - low) / (high - low) for _, value, _, _ in labels]
    ascending = sorted(range(len(labels)), key=lambda index: heights[index])
    right = axes.get_xlim()[1]
    leader = {"arrowstyle": "-", "linewidth": 0.7, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)}
    for index, height in zip(ascending, spread_labels([heights[index] for index in ascending], 0.052), strict=True):
        epoch, value, name, color = labels[index]
        axes.plot([epoch, right], [value, value], color=color, linewidth=0.7, linestyle=":", zorder=1)
        axes.annotate(
            name, xy=(right, value), xycoords="data", xytext=(1.035, height), textcoords="axes fraction",
            va="center", fontsize=SMALL, color=color, family=FONT, annotation_clip=False, parse_math=False,
            arrowprops={**leader, "color": color},
        )  # fmt: skip
    if heading:
        axes.text(
            1.035, 1.03, heading, transform=axes.transAxes, fontsize=SMALL, color=MUTED, family=FONT, va="bottom",
            parse_math=False,
        )  # fmt: skip
    if num_gray:
        axes.text(
            0.01, 0.99, f"gray: {num_gray} more", transform=axes.transAxes, fontsize=SMALL, color=TEXT_COLOR,
            family=FONT, va="top",
        )  # fmt: skip


def spread_labels(levels: list[float], gap: float) -> list[float]:
    """Move ascending `levels` as little as possible to be at least `gap` apart, and within 0 to 1 if they fit."""
    # Blocks of adjacent labels: the sum of the preferred positions of the lowest label, and the number of labels.
    blocks: list[list[float]] = []
    for level in levels:
        blocks.append([level, 1.0])
        while len(blocks) > 1 and _lowest(blocks[-2], gap) + gap * blocks[-2][1] > _lowest(blocks[-1], gap):
            total, count = blocks.pop()
            blocks[-1][0] += total - gap * blocks[-1][1] * count
            blocks[-1][1] += count
    return [_lowest(block, gap) + gap * index for block in blocks for index in range(int(block[1]))]


def _lowest(block: list[float], gap: float) -> float:
    total, count = block
    return max(0.0, min(total / count, 1 - gap * (count - 1)))


MONOSPACE_FONT = "DejaVu Sans Mono"
MAX_ROWS = 40


def dots(comparison: Comparison) -> Figure:
    """Draw up to 40 groups as rows, best first: swept values on the left, dots, the metric as text on the right.

    If only seed, fold or split are swept, each trial is a row; a line and a band show mean and standard deviation.
    """
    no_choices = not comparison.choices and bool(comparison.replicates)
    all_groups = group_trials(comparison, separate=True) if no_choices else list(comparison.groups)
    if not all_groups:
        return message_figure("The sweep has no trials yet.", comparison.title)
    metric, shown = comparison.metric, all_groups[:MAX_ROWS]
    header = headings(comparison.swept if no_choices else comparison.choices) or ["name"]
    labels = [
        [shorten_value(value) for value in group.values or (cell_text(group.members[0]["name"]),)] for group in shown
    ]
    widths = [max(map(cell_len, column)) for column in zip(header, *labels, strict=True)]
    margin = 0.095 * (sum(widths) + 2 * len(widths))
    figure = new_figure(max(9.0, margin + 7.5), 0.34 * len(shown) + 2.2, comparison.title)
    axes = figure.subplots()
    clean_axes(axes, comparison.heading + _subtitle(comparison, all_groups))
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_ylim(len(shown) - 0.4, -1.4)
    lines = [
        "  ".join(set_cell_size(cell, width) for cell, width in zip(row, widths, strict=True))
        for row in (header, *labels)
    ]
    axes.set_yticks(
        range(-1, len(shown)), lines, fontsize=SMALL, family=MONOSPACE_FONT, color=TEXT_COLOR, parse_math=False
    )
    axes.get_yticklabels()[0].set_color(MUTED)

    for row, group in enumerate(shown):
        _draw_row(axes, row, group, comparison, is_best=row == 0 and not no_choices)
    if no_choices:
        _draw_overall_mean(axes, comparison)
    if not any(group.finite_values(metric) for group in shown):
        axes.set_xticks([])
    elif is_fraction(metric):
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7))
        format_percent(axes.xaxis)
    elif prefers_log_scale(group.mean(metric) for group in shown):
        axes.set_xscale("log")
    axes.margins(x=0.06)
    if len(all_groups) > MAX_ROWS:
        axes.set_xlabel(
            f"and {len(all_groups) - MAX_ROWS} more in comparison.csv", fontsize=SMALL, color=MUTED, family=FONT
        )
    return figure


def _draw_row(axes: Axes, row: int, group: TrialGroup, comparison: Comparison, is_best: bool) -> None:
    metric, values = comparison.metric, group.finite_values(comparison.metric)
    if not values:
        axes.text(
            0.01, row, status_of(group, metric, 60), va="center", fontsize=SMALL, color=VALIDATION, family=FONT,
            transform=axes.get_yaxis_transform(), parse_math=False, zorder=4,
            bbox={"facecolor": BACKGROUND, "edgecolor": "none", "pad": 1},
        )  # fmt: skip
        return
    mean, std = group.mean(metric), group.std(metric)
    color = VALIDATION if is_best else TRAIN
    if len(values) > 1:
        axes.plot([mean - std, mean + std], [row, row], color=color, linewidth=3, alpha=0.35)
        axes.plot(values, [row] * len(values), linestyle="", marker="o", markersize=4, color=color, alpha=0.5)
    axes.plot([mean], [row], marker="o", markersize=8, color=color)
    runs = comparison.runs_per_group if comparison.choices else 0
    text = ", ".join(filter(None, (format_mean_std(group, metric, runs), format_missing(group, metric))))
    axes.text(
        1.02, row, text, va="center", fontsize=SMALL, family=FONT, color=TEXT_COLOR,
        fontweight="bold" if is_best else "normal", transform=axes.get_yaxis_transform(),
    )  # fmt: skip


def _draw_overall_mean(axes: Axes, comparison: Comparison) -> None:
    group, metric = comparison.groups[0], comparison.metric
    mean, std = group.mean(metric), group.std(metric)
    if math.isfinite(mean):
        axes.axvline(mean, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    if math.isfinite(std):
        axes.axvspan(mean - std, mean + std, color=MUTED, alpha=0.12, linewidth=0, zorder=0)
        axes.text(
            1.02, -1, format_mean_std(group, metric, comparison.runs_per_group), va="center", fontsize=SMALL,
            family=FONT, color=MUTED, transform=axes.get_yaxis_transform(),
        )  # fmt: skip


def _subtitle(comparison: Comparison, groups: Sequence[TrialGroup]) -> str:
    if any(len(group.finite_values(comparison.metric)) > 1 for group in groups) or not comparison.choices:
        return f": mean ± standard deviation over {comparison.over}" if comparison.over else ""
    return ""


MAX_CELLS = 30


def is_grid(comparison: Comparison) -> bool:
    """Return whether the combinations of the two swept columns fill at least about half of a grid."""
    groups = comparison.groups
    rows, columns = ({group.values[axis] for group in groups} for axis in (0, 1))
    cells = len(rows) * len(columns)
    return 0 < cells <= max(12, 2 * len(groups)) and len(rows) <= MAX_CELLS and len(columns) <= MAX_CELLS


def heat_map(comparison: Comparison) -> Figure:
    """Draw a heat map with the first swept column as rows and the second as columns: darker is better, the best framed.

    Numbers are sorted, text keeps the order of the sweep. A cell has the mean over seeds, folds or splits and below it
    the standard deviation or the number of failed trials. A cell without a value has its status; a combination that is
    not part of the sweep is empty.
    """
    groups = comparison.groups
    metric = comparison.metric
    cells = {(group.values[0], group.values[1]): group for group in groups}
    rows, columns = (
        sorted_values(cell_text(value) for value in comparison.trials[column]) for column in comparison.choices
    )

    width = min(1.7, max(0.95, 12 / len(columns)))
    height = 0.72 if len(rows) <= 12 else 0.55
    margin = 0.12 * max(cell_len(shorten_value(row)) for row in rows) + 0.6
    figure_width = max(8.0, len(columns) * width + margin + 0.4)
    figure = new_figure(figure_width, max(3.2, len(rows) * height + 1.9), comparison.title)
    width = (figure_width - margin - 0.4) / len(columns)
    axes = figure.subplots()
    image_axes(axes)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_title(_heading(comparison), loc="left", fontsize=SMALL, color=MUTED, family=FONT, pad=10)
    for set_ticks, values, max_length in ((axes.set_xticks, columns, 10 * width), (axes.set_yticks, rows, math.inf)):
        labels = [shorten_value(value) for value in values]
        rotation = 30 if max(map(cell_len, labels)) > max_length else 0
        set_ticks(
            range(len(values)), labels, rotation=rotation, ha="right" if rotation or values is rows else "center",
            fontsize=TEXT, family=FONT, parse_math=False,
        )  # fmt: skip
    axes.set_ylabel(comparison.choices[0], fontsize=TEXT, color=MUTED, family=FONT, parse_math=False)
    axes.set_xlabel(comparison.choices[1], fontsize=TEXT, color=MUTED, family=FONT, parse_math=False)

    shades = _color_levels({cell: group.mean(metric) for cell, group in cells.items()}, comparison.mode == "min")
    best = groups[0].values if math.isfinite(groups[0].mean(metric)) else None
    for (row, column), group in cells.items():
        x, y = columns.index(column), rows.index(row)
        _draw_cell(axes, x, y, shades[(row, column)], cell_labels(group, metric))
        if group.values == best:
            axes.add_patch(_square(x, y, facecolor="none", edgecolor=VALIDATION, linewidth=2.5))
    return figure


def _draw_cell(axes: Axes, x: int, y: int, shade: float, labels: tuple[str, str]) -> None:
    """Fill a cell in a shade of blue, or hatch it if `shade` is NaN, and write its labels."""
    known = math.isfinite(shade)
    fill, hatch = (colormaps["Blues"](0.08 + 0.8 * shade), None) if known else ("#F4F4F4", "////")
    axes.add_patch(_square(x, y, facecolor=fill, edgecolor="#C8C8C8", hatch=hatch, linewidth=0))
    value, note = labels
    color = "white" if known and shade > 0.62 else TEXT_COLOR if known else VALIDATION
    box = None if known else {"facecolor": "#F4F4F4", "edgecolor": "none", "pad": 2}
    axes.text(
        x, y - (0.14 if note else 0), value, ha="center", va="center", fontsize=HEADING if known else SMALL,
        color=color, family=FONT, bbox=box,
    )  # fmt: skip
    if note:
        axes.text(x, y + 0.24, note, ha="center", va="center", fontsize=SMALL - 1, color=color, family=FONT, bbox=box)


def _square(x: int, y: int, **style: Any) -> Rectangle:
    return Rectangle((x - 0.48, y - 0.47), 0.96, 0.94, **style)


def cell_labels(group: TrialGroup, metric: str) -> tuple[str, str]:
    """Return the two lines of a cell: the value, and the standard deviation or the number of missing trials."""
    mean, std = group.mean(metric), group.std(metric)
    if math.isnan(mean):
        statuses = dict.fromkeys(str(member["status"]).lower() for member in group.members)
        return "no value" if set(statuses) == {FINISHED.lower()} else ", ".join(statuses), ""
    spread = f"± {format_metric(metric, std)}" if math.isfinite(std) else ""
    return format_metric(metric, mean, 1), ", ".join(filter(None, (spread, format_missing(group, metric))))


def sorted_values(values: Iterable[str]) -> list[str]:
    """Return the distinct values: numbers sorted, text in its order."""
    distinct = list(dict.fromkeys(values))
    return sorted(distinct, key=to_float) if all_numeric(distinct) else distinct


def _heading(comparison: Comparison) -> str:
    unit = " in %" if is_fraction(comparison.metric) else ""
    spread = f", mean ± standard deviation over {comparison.over}" if comparison.runs_per_group > 1 else ""
    return f"{comparison.heading}{unit}{spread}"


def _color_levels(means: dict[tuple[str, str], float], reverse: bool) -> dict[tuple[str, str], float]:
    """Scale the means to [0, 1] with the best at 1; NaN stays NaN."""
    known = np.array([mean for mean in means.values() if math.isfinite(mean)])
    if not known.size:
        return dict.fromkeys(means, math.nan)
    low, high = float(known.min()), float(known.max())
    if high == low:
        return {cell: 0.4 if math.isfinite(mean) else math.nan for cell, mean in means.items()}
    return {cell: ((high - mean) if reverse else (mean - low)) / (high - low) for cell, mean in means.items()}


LEGEND_LABELS = ("best", "no value")


def numeric_column(comparison: Comparison) -> int | None:
    """Return the index of the numeric column if one of the one or two swept columns is numeric, else None."""
    groups = comparison.groups
    columns = range(len(comparison.choices))
    numeric = [column for column in columns if all_numeric(group.values[column] for group in groups)]
    return numeric[0] if len(numeric) == 1 and len(columns) <= 2 else None


def line(comparison: Comparison) -> Figure:
    """Draw the metric over the swept number, a line for each value of the other swept column, the best ringed.

    Over seeds, folds or splits, a line is the mean with bars of one standard deviation, and each trial is a faint dot.
    Crosses on the lower edge mark numbers without a value. The axis is logarithmic if `prefers_log_scale`.
    """
    column = numeric_column(comparison)
    if column is None:
        raise ValueError(f"No single swept number among {', '.join(comparison.choices)}.")
    groups, metric = comparison.groups, comparison.metric
    figure = new_figure(9.5, 5.2, comparison.title)
    axes = figure.subplots()
    clean_axes(axes, comparison.heading + _subtitle(comparison, groups), x=comparison.choices[column])
    values = sorted_values(group.values[column] for group in groups)
    numbers = [to_float(value) for value in values]
    if prefers_log_scale(numbers):
        axes.set_xscale("log")
    if is_fraction(metric):
        format_percent(axes.yaxis)
    elif prefers_log_scale(group.mean(metric) for group in groups):
        axes.set_yscale("log")

    lines: dict[tuple[str, ...], list[TrialGroup]] = {}
    for group in groups:
        lines.setdefault(tuple(value for i, value in enumerate(group.values) if i != column), []).append(group)
    for name, color in zip(sorted(lines), [*COLORS, *[MUTED] * len(lines)], strict=False):
        _draw_line(axes, lines[name], column, metric, color, name)
    best = groups[0]
    if math.isfinite(best.mean(metric)):
        axes.plot(
            [to_float(best.values[column])], [best.mean(metric)], marker="o", markersize=13, markerfacecolor="none",
            color=VALIDATION, markeredgewidth=2, label=LEGEND_LABELS[0], linestyle="", zorder=5,
        )  # fmt: skip
    _set_ticks(axes, values, numbers)
    _mark_missing(axes, groups, column, metric)
    entries = zip(*axes.get_legend_handles_labels(), strict=True)
    handles, labels = zip(*sorted(entries, key=lambda entry: entry[1] in LEGEND_LABELS), strict=True)
    if len(handles) > 1 or LEGEND_LABELS[1] in labels:
        legend = axes.legend(
            handles, labels, frameon=False, labelcolor=TEXT_COLOR, prop={"family": FONT, "size": SMALL},
            loc="upper left", bbox_to_anchor=(1.01, 1),
        )  # fmt: skip
        for label in legend.get_texts():
            label.set_parse_math(False)
    return figure


def _draw_line(
    axes: Axes, groups: list[TrialGroup], column: int, metric: str, color: str, name: tuple[str, ...]
) -> None:
    groups = sorted(groups, key=lambda group: to_float(group.values[column]))
    known = [group for group in groups if group.finite_values(metric)]
    if not known:
        return
    numbers = [to_float(group.values[column]) for group in known]
    for x, group in zip(numbers, known, strict=True):
        values = group.finite_values(metric)
        if len(values) > 1:
            axes.plot([x] * len(values), values, linestyle="", marker="o", markersize=4, color=color, alpha=0.35)
    stds = np.nan_to_num([group.std(metric) for group in known])
    label = shorten_value(name[0]) if name else "_mean"  # labels with an underscore are not in the legend
    axes.errorbar(
        numbers, [group.mean(metric) for group in known], yerr=stds if stds.any() else None, color=color,
        linewidth=2, marker="o", markersize=6, capsize=4, elinewidth=1.5, label=label,
    )  # fmt: skip


def _set_ticks(axes: Axes, values: list[str], numbers: list[float]) -> None:
    low, high = min(numbers), max(numbers)
    if axes.get_xscale() == "log":
        axes.set_xlim(low / (high / low) ** 0.05, high * (high / low) ** 0.05)
        positions = np.log(numbers)
    else:
        margin = 0.05 * (high - low) or 0.5 * abs(high) or 1.0
        axes.set_xlim(low - margin, high + margin)
        positions = np.array(numbers)
    # Ticks at the swept numbers, unless their labels would overlap.
    if len(numbers) == 1 or (np.diff(positions).min() > 0.055 * np.ptp(positions) and len(numbers) <= 14):
        axes.set_xticks(numbers, [shorten_value(value) for value in values])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_minor_formatter(NullFormatter())


def _mark_missing(axes: Axes, groups: Sequence[TrialGroup], column: int, metric: str) -> None:
    missing = [to_float(group.values[column]) for group in groups if not group.finite_values(metric)]
    if not missing:
        return
    if len(missing) == len(groups):
        axes.set_yticks([])
    axes.plot(
        missing, [0.02] * len(missing), linestyle="", marker="x", markersize=9, markeredgewidth=2.5, color=TEXT_COLOR,
        transform=axes.get_xaxis_transform(), label=LEGEND_LABELS[1], clip_on=False,
    )  # fmt: skip
