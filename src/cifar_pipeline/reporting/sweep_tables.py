"""Format the comparison of a sweep's trials for the terminal, as Markdown and as CSV."""

import math
import textwrap
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from cifar_pipeline.reporting.metric_names import display_name, format_metric, unit
from cifar_pipeline.reporting.significance import ONE_RUN, UNCLEAR, compare_with_best, describe_differences
from cifar_pipeline.reporting.sweep_comparison import (
    FAILED_STATUSES,
    FINISHED,
    PRUNED,
    Comparison,
    TrialGroup,
    cell_text,
    ranks,
    single_line,
    to_float,
)
from cifar_pipeline.reporting.tables import safe_cell
from cifar_pipeline.utils.console import format_duration
from cifar_pipeline.utils.text import escape_control

# Text of at most this many characters is not wrapped in the terminal.
MIN_TEXT_WIDTH = 13


@dataclass(frozen=True)
class RankingTable:
    """The ranking as text.

    Attributes:
        header: names of the columns: rank, choices, metric, difference, another metric, time and status; a single row
            has no difference.
        rows: cells of each group, best first.
        num_choices: number of columns between the rank and the metric.
    """

    header: list[str]
    rows: list[list[str]]
    num_choices: int

    @property
    def metric_column(self) -> int:
        """The index of the metric."""
        return 1 + self.num_choices

    @property
    def numeric_columns(self) -> tuple[int, ...]:
        """The indices of the columns of numbers."""
        return (0, self.metric_column, len(self.header) - 3, len(self.header) - 2)


def ranking_table(comparison: Comparison) -> RankingTable:
    """Format the groups as rows of text, best first."""
    metric = comparison.metric
    split = metric.partition("/")[0] if metric in ("train/loss", "train/accuracy") else "val"
    other = f"{split}/loss" if metric == f"{split}/accuracy" else f"{split}/accuracy"
    choices = comparison.choices or comparison.replicates or ("name",)
    differences = compare_with_best(comparison)
    has_difference = len(differences) > 1
    results = [display_name(metric), *["difference"] * has_difference, display_name(other), "time", "status"]
    rows = []
    for group, rank, difference in zip(comparison.groups, ranks(comparison), differences, strict=True):
        values = group.values or tuple(
            ", ".join(dict.fromkeys(cell_text(member.get(key)) for member in group.members)) for key in choices
        )
        seconds = group.mean("seconds")
        rows.append([
            "" if rank is None else str(rank), *(shorten_value(value) for value in values),
            format_mean_std(group, metric, comparison.runs_per_group), *[difference.text] * has_difference,
            format_mean_std(group, other), "" if math.isnan(seconds) else format_duration(seconds),
            status_of(group, metric),
        ])  # fmt: skip
    return RankingTable(["rank", *choices, *results], rows, len(choices))


def as_table(comparison: Comparison, width: int) -> Table:
    """Format the ranking for a terminal of `width` characters, the best group in color.

    The sentence below the table (`describe_differences`) replaces a column that says of each row that it has one run.
    If there is too little space, the other metric, the time, and the status if all are the same, are left out.
    """
    ranking = ranking_table(comparison)
    *_, other_metric, time, status = range(len(ranking.header))
    hidden = uninformative_columns(ranking)
    same_status = {status} if len({row[status] for row in ranking.rows}) == 1 else set()
    console = Console(width=width)
    unlimited = console.options.update(max_width=10_000)
    layouts = [set(), {other_metric}, {other_metric, time}, {other_metric, time, *same_status}]
    for too_many, unwrapped in [*((layout, len(UNCLEAR)) for layout in layouts), (layouts[-1], 0)]:
        table = _terminal_table(comparison, ranking, hidden | too_many, unwrapped)
        if Measurement.get(console, unlimited, table).minimum <= width:
            break
    return table


def uninformative_columns(ranking: RankingTable) -> set[int]:
    """Return the column `difference` if it says of every row that one run each cannot tell; else nothing."""
    difference = ranking.metric_column + 1
    if len(ranking.rows) < 2 or not {row[difference] for row in ranking.rows[1:]} <= {ONE_RUN, ""}:
        return set()
    return {difference}


def short_header(comparison: Comparison, ranking: RankingTable) -> list[str]:
    """Return the names of the columns, of more than two choices without the group (`lr`) if these are distinct."""
    names = list(ranking.header)
    if len(comparison.choices) > 2:
        names[1 : ranking.metric_column] = headings(comparison.choices)
    return names


def _terminal_table(comparison: Comparison, ranking: RankingTable, hidden: set[int], unwrapped: int) -> Table:
    """Format the columns that are not hidden; a difference of at most `unwrapped` characters is not wrapped."""
    table = empty_table(comparison.full_title)
    names = short_header(comparison, ranking)
    shown = [column for column in range(len(names)) if column not in hidden]
    for column in shown:
        heading = column_heading(names[column])
        longest = max(map(len, [*names[column].split(" "), *(cells[column] for cells in ranking.rows)]))
        # Numbers are never wrapped, text may be.
        if column in ranking.numeric_columns:
            table.add_column(heading, justify="right", no_wrap=True, min_width=longest)
        else:
            min_width = unwrapped if column == ranking.metric_column + 1 else MIN_TEXT_WIDTH
            table.add_column(heading, overflow="fold", min_width=min(min_width, longest))
    for index, (group, row) in enumerate(zip(comparison.groups, ranking.rows, strict=True)):
        is_best = index == 0 and row[0] != ""
        pruned_style = "dim" if group.count(PRUNED) else None
        style = "bold green" if is_best else "red" if group.count(*FAILED_STATUSES) else pruned_style
        # Without spaces, so that a p-value is not wrapped.
        cells = [row[column].replace("p = ", "p=").replace("p < ", "p<") for column in shown]
        table.add_row(*(Text(escape_control(cell)) for cell in cells), style=style)
    return table


def to_markdown(comparison: Comparison) -> str:
    """Format the ranking as a Markdown table, the best group in bold, with sentences on differences and failures."""
    ranking = ranking_table(comparison)
    rows = ranking.rows
    if rows and rows[0][0]:
        rows[0] = [f"**{cell}**" if cell else "" for cell in rows[0]]
    hidden = uninformative_columns(ranking)
    shown = [column for column in range(len(ranking.header)) if column not in hidden]
    right = {position for position, column in enumerate(shown) if column in ranking.numeric_columns}
    header, *cells = ([row[column] for column in shown] for row in (ranking.header, *rows))
    lines = markdown_table(comparison.full_title, header, cells, right)
    for sentence in describe_differences(comparison):
        lines += ["", single_line(sentence)]
    failures = failed_trials(comparison)
    if failures:
        lines += ["", *(f"- {line}" for line in failures)]
    return "\n".join(lines) + "\n"


def to_csv(comparison: Comparison) -> str:
    """Format all trials as CSV, in the order of the sweep, with unrounded numbers.

    `difference` and `p` are those of the trial's row in the ranking.
    """
    trials = comparison.trials
    if "run_id" in trials:
        by_run = {
            cell_text(member.get("run_id")): difference
            for group, difference in zip(comparison.groups, compare_with_best(comparison), strict=True)
            for member in group.members
        }
        differences = [by_run[cell_text(run_id)] for run_id in trials["run_id"]]
        trials = trials.assign(
            difference=[difference.verdict for difference in differences],
            p=[difference.p for difference in differences],
        )
    first = ["name", *comparison.swept, "status", "reason", "reused", *comparison.metrics, "difference", "p", "seconds"]
    rest = [column for column in trials if column not in (*first, "run_id")]
    order = [column for column in dict.fromkeys([*first, *rest, "run_id"]) if column in trials]
    return str(trials[order].map(safe_cell).to_csv(index=False, lineterminator="\n"))


def failed_trials(comparison: Comparison) -> list[str]:
    """Describe each failed trial in a sentence: its name and the reason."""
    lines = []
    for trial in comparison.trials.to_dict("records"):
        status = cell_text(trial["status"])
        if status in FAILED_STATUSES:
            reason = single_line(trial.get("reason")).rstrip(".")
            failure = f"{_name(comparison, trial)} {'failed' if status == 'FAILED' else 'was killed'}"
            lines.append(f"{failure}: {reason}." if reason else f"{failure} (no reason recorded).")
    return lines


def status_of(group: TrialGroup, metric: str, width: int = 34) -> str:
    """Summarize how a group's trials ended, with the reason of a failure, in about `width` characters."""
    single = len(group.members) == 1
    counts: dict[str, int] = {}
    for member in group.members:
        status = cell_text(member["status"]).lower() or "unknown"
        counts[status] = counts.get(status, 0) + 1
    text = ", ".join(status if len(counts) == 1 else f"{count} {status}" for status, count in counts.items())
    without_value = group.count(FINISHED) - len(group.finite_values(metric))
    if without_value:
        text += ", no value" if single else f", {without_value} without a value"
    if reused := group.reused():
        text += ", reused" if reused == len(group.members) else f", {reused} reused"
    if not (reasons := group.reasons()):
        return text
    reason = escape_control(reasons[0])
    if text.startswith("pruned"):
        reason = reason.removeprefix("Pruned ")  # Pruned after epoch 2 of 10 ...
    return f"{text}: {truncate(reason, max(20, width - len(text)))}"


def format_mean_std(group: TrialGroup, metric: str, runs: int = 0) -> str:
    """Format a group's metric as `62.31 %`, or as `62.31 ± 0.40 % (3)` if it is a mean; empty without a value.

    Args:
        runs: the number of trials that the mean should be over, `62.31 ± 0.40 % (2 of 3)`; 0 for no mean.
    """
    mean, std, count = group.mean(metric), group.std(metric), len(group.finite_values(metric))
    if math.isnan(mean):
        return ""
    value = format_metric(metric, mean)
    if not runs:
        return value + unit(metric)
    spread = "" if math.isnan(std) else f" ± {format_metric(metric, std)}"
    return f"{value}{spread}{unit(metric)} ({count}{f' of {runs}' if count < runs else ''})"


def format_missing(group: TrialGroup, metric: str) -> str:
    """Format how many of a group's trials are missing from its mean: `1 failed`; empty if none is."""
    failed, missing = group.count(*FAILED_STATUSES), len(group.members) - len(group.finite_values(metric))
    return f"{failed} failed" if failed else f"{missing} missing" if missing else ""


def headings(columns: tuple[str, ...]) -> list[str]:
    """Shorten the names of swept columns to their last component, `lr` for `optimizer.lr`, if these are distinct."""
    last = [column.rpartition(".")[2] for column in columns]
    return last if len(set(last)) == len(last) else list(columns)


def shorten_value(value: str) -> str:
    """Shorten a swept value for a table cell: long numbers are rounded, long text is cut."""
    if len(value) > 8 and math.isfinite(to_float(value)):
        return f"{to_float(value):.4g}"
    return truncate(escape_control(value), 28)


def truncate(text: str, width: int) -> str:
    """Cut a text at `width` characters, between words if they are short enough."""
    if len(text) <= width:
        return text
    cut = textwrap.shorten(text, width, placeholder=" …")
    return cut if len(cut) > width // 2 else f"{text[: width - 2]} …"


def _name(comparison: Comparison, trial: dict[Any, Any]) -> str:
    # A trial that never started has no run, hence no name.
    return cell_text(trial.get("name")) or " ".join(
        f"{column}={cell_text(trial[column])}" for column in comparison.swept
    )


def empty_table(title: str) -> Table:
    """Return a table for the terminal with a title, to which columns and rows are to be added."""
    return Table(
        box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title=Text(escape_control(title)),
        title_justify="left", title_style="bold",
    )  # fmt: skip


def column_heading(name: str) -> Text:
    """Format the heading of a column for the terminal, one word in each line."""
    return Text(escape_control(name).replace(" ", "\n"))


def markdown_table(title: str, header: list[str], rows: list[list[str]], right: Collection[int]) -> list[str]:
    """Format a heading and a table as lines of Markdown; the columns `right` are right-aligned."""
    rule = ["---:" if column in right else "---" for column in range(len(header))]
    return [f"## {single_line(title)}", "", *map(_markdown_row, [header, rule, *rows])]


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
