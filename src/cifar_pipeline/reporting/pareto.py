"""Pareto front of a search for several objectives: the trials that no other trial beats in all of them."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from rich.table import Table
from rich.text import Text

from cifar_pipeline.reporting.metric_names import display_name, format_metric, heading_name, is_fraction, unit
from cifar_pipeline.reporting.style import (
    BACKGROUND,
    FONT,
    MUTED,
    OTHER_COLOR,
    SMALL,
    TEXT_COLOR,
    VALIDATION,
    clean_axes,
    format_percent,
    message_figure,
    new_figure,
)
from cifar_pipeline.reporting.sweep_comparison import (
    Comparison,
    TrialGroup,
    prefers_log_scale,
    single_line,
)
from cifar_pipeline.reporting.sweep_tables import (
    column_heading,
    empty_table,
    headings,
    markdown_table,
    shorten_value,
)
from cifar_pipeline.utils.text import escape_control


def pareto_front(comparison: Comparison) -> list[TrialGroup]:
    """Return the groups that no other group dominates, ordered by the first objective, best first."""
    groups = _measured(comparison)
    points = [_costs(comparison, group) for group in groups]
    front = [
        (point, index) for index, point in enumerate(points) if not any(_dominates(other, point) for other in points)
    ]
    return [groups[index] for _, index in sorted(front)]


def _measured(comparison: Comparison) -> list[TrialGroup]:
    """Return the groups with a value of each objective."""
    return [group for group in comparison.groups if all(map(math.isfinite, _costs(comparison, group)))]


def _costs(comparison: Comparison, group: TrialGroup) -> tuple[float, ...]:
    """Return the group's values of the objectives, with the sign by which smaller is better."""
    return tuple(group.mean(metric) * (-1 if mode == "max" else 1) for metric, mode in comparison.objectives)


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether `one` is at least as good in each objective, and better in one."""
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def front_title(comparison: Comparison) -> str:
    """Return the heading of the front: `Pareto front: validation accuracy (max), parameters (min)`."""
    return "Pareto front: " + ", ".join(f"{display_name(metric)} ({mode})" for metric, mode in comparison.objectives)


def front_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the header and a row of text for each group of the front: number, swept values, objectives."""
    choices = headings(comparison.choices) if comparison.choices else ["name"]
    header = ["no.", *choices, *(display_name(metric) for metric, _ in comparison.objectives)]
    rows = []
    for number, group in enumerate(pareto_front(comparison), 1):
        values = [shorten_value(value) for value in group.values] or [single_line(group.members[0].get("name"))]
        measured = [format_metric(metric, group.mean(metric)) + unit(metric) for metric, _ in comparison.objectives]
        rows.append([str(number), *values, *measured])
    return header, rows


def front_table(comparison: Comparison) -> Table:
    """Format the front for the terminal."""
    table = empty_table(front_title(comparison))
    header, rows = front_rows(comparison)
    numeric = front_numeric_columns(comparison, header)
    for column, name in enumerate(header):
        if column in numeric:
            table.add_column(column_heading(name), justify="right", no_wrap=True)
        else:
            table.add_column(column_heading(name), overflow="fold")
    for row in rows:
        table.add_row(*(Text(escape_control(cell)) for cell in row))
    return table


def front_markdown(comparison: Comparison) -> str:
    """Format the front as a Markdown table."""
    header, rows = front_rows(comparison)
    lines = markdown_table(front_title(comparison), header, rows, front_numeric_columns(comparison, header))
    return "\n".join(lines) + "\n"


def front_numeric_columns(comparison: Comparison, header: Sequence[str]) -> list[int]:
    """Return the indices of the columns of `front_rows` with numbers: the first, and the objectives."""
    return [0, *range(len(header) - len(comparison.objectives), len(header))]


def pareto_figure(comparison: Comparison) -> Figure:
    """Draw the first objective against each other one, the front with the numbers of its table."""
    groups, front = _measured(comparison), pareto_front(comparison)
    if not front:
        return message_figure("No trial has a value of each objective.", f"Pareto front of {comparison.title}")
    (first, _), *others = comparison.objectives
    figure = new_figure(9.0 if len(others) == 1 else 6.0 * len(others), 5.0, f"Pareto front of {comparison.title}")
    for axes, (metric, mode) in zip(figure.subplots(1, len(others), squeeze=False)[0], others, strict=True):
        clean_axes(axes, x=heading_name(metric), y=heading_name(first))
        xs = [group.mean(metric) for group in groups]
        axes.scatter(
            xs, [group.mean(first) for group in groups], s=34, color=OTHER_COLOR, edgecolor=MUTED, linewidth=0.6,
            zorder=2, label="other trials",
        )  # fmt: skip
        points: dict[tuple[float, float], list[int]] = {}
        for number, group in enumerate(front, 1):
            points.setdefault((group.mean(metric), group.mean(first)), []).append(number)
        if len(others) == 1:
            style = "steps-post" if mode == "min" else "steps-pre"
            axes.plot(*zip(*sorted(points), strict=True), color=VALIDATION, linewidth=1.2, zorder=3, drawstyle=style)
        axes.scatter(
            *zip(*points, strict=True), s=64, color=VALIDATION, edgecolor=BACKGROUND, linewidth=1, zorder=4,
            label="Pareto front",
        )  # fmt: skip
        for point, numbers in points.items():
            axes.annotate(
                ", ".join(map(str, numbers)), point, xytext=(0, 7), textcoords="offset points", ha="center",
                fontsize=SMALL, color=TEXT_COLOR, family=FONT, zorder=5,
            )  # fmt: skip
        _format_axes(axes, metric, first, xs)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], loc="outside lower left", ncols=2, frameon=False,
        prop={"family": FONT, "size": SMALL}, labelcolor=MUTED,
    )  # fmt: skip
    return figure


def _format_axes(axes: Axes, metric: str, first: str, xs: Sequence[float]) -> None:
    if prefers_log_scale(xs):
        axes.set_xscale("log")
    if is_fraction(metric):
        format_percent(axes.xaxis)
    elif metric == "parameters":
        formatter = FuncFormatter(lambda value, _: f"{value:,.0f}")
        axes.xaxis.set_major_formatter(formatter)
    if is_fraction(first):
        format_percent(axes.yaxis)
    axes.margins(x=0.08, y=0.12)
