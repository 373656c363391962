"""A sweep's comparison in letters: a table for the terminal, Markdown for a page, CSV for a program."""

import math
import textwrap
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from cifar_pipeline.console import duration
from cifar_pipeline.reporting.comparison.groups import (
    BROKEN,
    FINISHED,
    SEED,
    Comparison,
    Group,
    groups,
    number,
    one_line,
    text,
)  # fmt: skip
from cifar_pipeline.reporting.csv_files import safe_cell
from cifar_pipeline.reporting.metric_names import in_words, is_fraction
from cifar_pipeline.visible import visible


def as_table(comparison: Comparison) -> Table:
    """Lay out the groups, best first, the winner in colour; as wide as the console lets it be."""
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title=Text(visible(comparison.title)),
        title_justify="left", title_style="bold",
    )  # fmt: skip
    header, rows = cells(comparison)
    numbers = numeric_places(header)
    if len(comparison.choices) > 2:
        header[1:-4] = headings(comparison.choices)
    for place, name in enumerate(header):
        heading = Text(visible(name).replace(" ", "\n"))
        # Numbers are never broken; what is long folds.
        if place in numbers:
            table.add_column(heading, justify="right", no_wrap=True)
        else:
            table.add_column(heading, overflow="fold", min_width=min(12, len(name)))
    for place, (group, row) in enumerate(zip(groups(comparison), rows, strict=True)):
        won = place == 0 and not math.isnan(group.mean(comparison.metric))
        style = "bold green" if won else "red" if group.count(*BROKEN) else None
        table.add_row(*(Text(visible(cell)) for cell in row), style=style)
    return table


def to_markdown(comparison: Comparison) -> str:
    """Write the groups as a Markdown table, best first, the winner in bold, and below it each failed point."""
    header, rows = cells(comparison)
    if rows and rows[0][0]:
        rows[0] = [f"**{cell}**" if cell else "" for cell in rows[0]]
    right = numeric_places(header)
    lines = [f"## {one_line(comparison.title)}", ""]
    lines.append(_markdown_row(header))
    lines.append(_markdown_row(["---:" if place in right else "---" for place in range(len(header))]))
    lines += [_markdown_row(row) for row in rows]
    failures = failed_points(comparison)
    if failures:
        lines += ["", *(f"- {line}" for line in failures)]
    return "\n".join(lines) + "\n"


def to_csv(comparison: Comparison) -> str:
    """Write every point, in the order of the sweep, its numbers in full."""
    points = comparison.points
    first = ["name", *comparison.swept, "status", "reason", "reused", *comparison.metrics, "seconds"]
    rest = [column for column in points if column not in (*first, "run_id")]
    columns = [column for column in dict.fromkeys([*first, *rest, "run_id"]) if column in points]
    return str(points[columns].map(safe_cell).to_csv(index=False, lineterminator="\n"))


def failed_points(comparison: Comparison) -> list[str]:
    """Say of each failed point, in a sentence, which it is and why it failed."""
    lines = []
    for point in comparison.points.to_dict("records"):
        status = text(point["status"])
        if status in BROKEN:
            reason = one_line(point.get("reason")).rstrip(".")
            what = f"{_name(comparison, point)} {'failed' if status == 'FAILED' else 'was killed'}"
            lines.append(f"{what}: {reason}." if reason else f"{what}, and left no reason.")
    return lines


def status_of(group: Group, metric: str, width: int = 34) -> str:
    """Say how a group's points ended, the reason of a failure shortened so that all takes up to about `width`."""
    single = len(group.members) == 1
    counts: dict[str, int] = {}
    for member in group.members:
        status = text(member["status"]).lower() or "unknown"
        counts[status] = counts.get(status, 0) + 1
    words = ", ".join(status if len(counts) == 1 else f"{count} {status}" for status, count in counts.items())
    without = group.count(FINISHED) - len(group.numbers(metric))
    if without:
        words += ", no value" if single else f", {without} without a value"
    if reused := group.reused():
        words += ", reused" if reused == len(group.members) else f", {reused} reused"
    reasons = group.reasons()
    return f"{words}: {shorten(visible(reasons[0]), max(20, width - len(words)))}" if reasons else words


def measured(group: Group, metric: str, grouped: bool) -> str:
    """Write a group's metric: `62.31 %`, or over seeds `62.31 ± 0.40 % (3)`; empty without a value."""
    mean, deviation = group.mean(metric), group.deviation(metric)
    if math.isnan(mean):
        return ""
    value, spread, unit = figures(metric, mean), figures(metric, deviation), " %" if is_fraction(metric) else ""
    if not grouped:
        return value + unit
    return f"{value}{'' if math.isnan(deviation) else f' ± {spread}'}{unit} ({len(group.numbers(metric))})"


def missing(group: Group, metric: str) -> str:
    """Say how many of a group's points its mean lacks; empty where it lacks none."""
    broken, without = group.count(*BROKEN), len(group.members) - len(group.numbers(metric))
    # A mean over fewer seeds than its neighbours' must be seen to be one.
    return f"{broken} failed" if broken else f"{without} missing" if without else ""


def figures(metric: str, value: float, digits: int = 2) -> str:
    """Write the number alone: per cent for an accuracy, otherwise two digits more, and large ones by their power."""
    if is_fraction(metric):
        return f"{100 * value:.{digits}f}"
    return f"{value:.{digits + 2}f}" if abs(value) < 1000 else f"{value:.{digits}e}"


def headings(columns: tuple[str, ...]) -> list[str]:
    """Name swept columns by their last part, `lr` for `optimizer.lr`, where that tells them apart."""
    last = [column.rpartition(".")[2] for column in columns]
    return last if len(set(last)) == len(last) else list(columns)


def short(value: str) -> str:
    """Write a swept value so that it fits a cell: a long number rounded, long words cut; CSV has them in full."""
    if len(value) > 8 and math.isfinite(number(value)):
        return f"{number(value):.4g}"
    return shorten(visible(value), 28)


def shorten(words: str, width: int) -> str:
    """Cut at `width` letters, between words where they are short enough."""
    if len(words) <= width:
        return words
    cut = textwrap.shorten(words, width, placeholder=" …")
    return cut if len(cut) > width // 2 else f"{words[: width - 2]} …"


def cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Write the table: its header, and a row for each group, best first."""
    metric = comparison.metric
    part = metric.rpartition("/")[0]
    other = f"{part}/accuracy" if metric == f"{part}/loss" else f"{part}/loss"
    choices = comparison.choices or ((SEED,) if comparison.over_seeds else ("name",))
    header = ["rank", *choices, in_words(metric), in_words(other), "time", "status"]
    rows, means = [], []
    for group in groups(comparison):
        means.append(group.mean(metric))
        rank = "" if math.isnan(means[-1]) else str(means.index(means[-1]) + 1)
        values = group.values or (", ".join(text(member.get(choices[0])) for member in group.members),)
        seconds = group.mean("seconds")
        rows.append([
            rank, *(short(value) for value in values),
            measured(group, metric, comparison.over_seeds), measured(group, other, grouped=False),
            "" if math.isnan(seconds) else duration(seconds), status_of(group, metric),
        ])  # fmt: skip
    return header, rows


def _name(comparison: Comparison, point: dict[Any, Any]) -> str:
    # A point that never began has no run, so no name.
    return text(point.get("name")) or " ".join(f"{column}={text(point[column])}" for column in comparison.swept)


def numeric_places(header: list[str]) -> tuple[int, ...]:
    """Say which columns of the table hold numbers."""
    return (0, *range(len(header) - 4, len(header) - 1))


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
