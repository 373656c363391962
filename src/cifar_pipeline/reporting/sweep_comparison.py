"""Rank a sweep's trials, averaged over seeds, and format them for the terminal, as Markdown and as CSV."""

import math
import statistics
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from cifar_pipeline.reporting.metric_names import display_name, format_metric, heading_name, unit
from cifar_pipeline.reporting.tables import safe_cell
from cifar_pipeline.utils.console import format_duration
from cifar_pipeline.utils.text import escape_control, one_line

SEED_KEY = "seed"
FINISHED = "FINISHED"
# A search stopped the trial early: it is neither ranked nor failed.
PRUNED = "PRUNED"
FAILED_STATUSES = ("FAILED", "KILLED")


@dataclass(frozen=True)
class Comparison:
    """Trials of a sweep with their metrics.

    Attributes:
        title: names the sweep and the data set.
        trials: one row per trial, in the order of the sweep, with columns `run_id`, `name`, `status` (MLflow's),
            `reason` (of a failure, or empty), `reused` (the run belongs to another sweep), the swept keys (values as
            on the command line), the metrics (`val/accuracy`, ...; NaN if not finished) and `seconds`.
        swept: the swept columns of `trials`, in order.
        histories: by run id, one row per epoch with columns `epoch` and the metrics.
        metric: the metric to rank by.
        mode: whether larger or smaller values of it are better, `max` or `min`.
        checkpoint: the weights that the metrics of `trials` are of, `last` or `best`.
        objectives: of a search, each a metric and its mode, the one to rank by first.
    """

    title: str
    trials: pd.DataFrame
    swept: tuple[str, ...]
    histories: dict[str, pd.DataFrame] = field(default_factory=dict)
    metric: str = "val/accuracy"
    mode: str = "max"
    checkpoint: str = "last"
    objectives: tuple[tuple[str, str], ...] = ()

    @property
    def full_title(self) -> str:
        """The title with the metric and the checkpoint that the trials are ranked by."""
        return f"{self.title}: {display_name(self.metric)} of the {self.checkpoint} weights"

    @property
    def heading(self) -> str:
        """The metric, as the heading of a figure of the trials."""
        return heading_name(self.metric) + (" of the best weights" if self.checkpoint == "best" else "")

    @property
    def choices(self) -> tuple[str, ...]:
        """The swept columns without the seed."""
        return tuple(column for column in self.swept if column != SEED_KEY)

    @property
    def averages_seeds(self) -> bool:
        """Whether trials that differ only in their seed are averaged."""
        return SEED_KEY in self.swept

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics of the table, the one to rank by first."""
        columns = [str(column) for column in self.trials if "/" in str(column) and column not in self.swept]
        return (self.metric, *(column for column in columns if column != self.metric))


@dataclass(frozen=True)
class TrialGroup:
    """A row of the ranking: a single trial, or the trials that differ only in their seed.

    Attributes:
        values: values of the swept columns, without the seed if it is averaged over.
        members: rows of the trials, in the order of the sweep.
    """

    values: tuple[str, ...]
    members: tuple[dict[str, Any], ...]

    def finite_values(self, column: str) -> list[float]:
        """Return the finite values of the finished members."""
        values = [to_float(member.get(column)) for member in self.members if cell_text(member["status"]) == FINISHED]
        return [value for value in values if math.isfinite(value)]

    def mean(self, column: str) -> float:
        """Average over the finished members; NaN without any. Bit-identical for any order of the members."""
        values = self.finite_values(column)
        return statistics.fmean(values) if values else math.nan

    def std(self, column: str) -> float:
        """Compute the sample standard deviation over the finished members; NaN for fewer than two."""
        values = self.finite_values(column)
        return statistics.stdev(values) if len(values) > 1 else math.nan

    def count(self, *statuses: str) -> int:
        """Count the members with one of `statuses`."""
        return sum(cell_text(member["status"]) in statuses for member in self.members)

    def reused(self) -> int:
        """Count the members whose run belongs to another sweep."""
        return sum(cell_text(member.get("reused")).lower() in ("true", "1", "1.0") for member in self.members)

    def reasons(self) -> list[str]:
        """List the distinct reasons of failures, each on one line."""
        reasons = (
            single_line(member.get("reason"))
            for member in self.members
            if cell_text(member["status"]) in FAILED_STATUSES
        )
        return list(dict.fromkeys(reason for reason in reasons if reason))

    def representative(self, metric: str) -> dict[str, Any]:
        """Return the first member with a value of the metric, or the first member if none has one."""
        with_value = (member for member in self.members if TrialGroup((), (member,)).finite_values(metric))
        return next(with_value, self.members[0])


def group_trials(comparison: Comparison, separate: bool = False) -> list[TrialGroup]:
    """Group the trials over their seeds, best first; groups without a value come last, in the order of the sweep.

    Ties keep the order of the sweep. A run that occurs twice in the sweep counts once.

    Args:
        separate: return each trial as a group of its own.
    """
    members: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    seen: set[str] = set()
    columns = comparison.swept if separate else comparison.choices
    for index, trial in enumerate(comparison.trials.to_dict("records")):
        run = cell_text(trial.get("run_id"))
        if run and run in seen:
            continue
        seen.add(run)
        values = tuple(cell_text(trial[column]) for column in columns)
        ungrouped = separate or not comparison.averages_seeds
        members.setdefault((*values, index if ungrouped else -1), []).append({str(key): trial[key] for key in trial})
    groups = [TrialGroup(values[:-1], tuple(trials)) for values, trials in members.items()]
    sign = 1 if comparison.mode == "min" else -1

    def sort_key(group: TrialGroup) -> tuple[bool, float]:
        mean = group.mean(comparison.metric)
        return math.isnan(mean), 0.0 if math.isnan(mean) else sign * mean

    return sorted(groups, key=sort_key)


def leaderboard(comparison: Comparison) -> pd.DataFrame:
    """Rank the groups, best first; those without a value come last and have no rank. Ties share a rank.

    Returns:
        Columns `rank`, the swept keys, for each metric the mean over the finished members (`val/accuracy`), the sample
        standard deviation (`val/accuracy std`) and the number of values (`val/accuracy n`), `seconds` (mean), `trials`,
        `finished`, `failed` (including killed trials), `reused`, then `run_id`, `name` and, if it is swept, `seed` of
        the first finished member.
    """
    rows = []
    groups = group_trials(comparison)
    means = [group.mean(comparison.metric) for group in groups]
    for group, mean in zip(groups, means, strict=True):
        row: dict[str, Any] = {"rank": pd.NA if math.isnan(mean) else means.index(mean) + 1}
        row |= dict(zip(comparison.choices, group.values, strict=True))
        for metric in comparison.metrics:
            row[metric] = group.mean(metric)
            row[f"{metric} std"] = group.std(metric)
            row[f"{metric} n"] = len(group.finite_values(metric))
        row["seconds"] = group.mean("seconds")
        row["trials"] = len(group.members)
        row["finished"], row["failed"] = group.count(FINISHED), group.count(*FAILED_STATUSES)
        row["reused"] = group.reused()
        trial = group.representative(comparison.metric)
        row |= {"run_id": cell_text(trial.get("run_id")), "name": cell_text(trial.get("name"))}
        if comparison.averages_seeds:
            row[SEED_KEY] = cell_text(trial[SEED_KEY])
        rows.append(row)
    columns = ["rank", *comparison.choices, *(f"{m}{s}" for m in comparison.metrics for s in ("", " std", " n"))]
    columns += ["seconds", "trials", "finished", "failed", "reused", "run_id", "name"]
    columns += [SEED_KEY] * comparison.averages_seeds
    return pd.DataFrame(rows, columns=columns).astype({"rank": "Int64"})


def winner(comparison: Comparison) -> "pd.Series[Any] | None":
    """Return the first row of `leaderboard`; None while no trial has finished with a value."""
    table = leaderboard(comparison)
    if table.empty or pd.isna(table["rank"].iloc[0]):
        return None
    return table.iloc[0]


def cell_text(value: object) -> str:
    """Format a cell; missing values are empty."""
    return "" if value is None or bool(pd.isna(value)) else str(value)  # type: ignore[call-overload]


def single_line(value: object) -> str:
    """Format a cell on one line."""
    return one_line(cell_text(value))


def to_float(value: object) -> float:
    """Parse a number; NaN if it is none."""
    try:
        return float(cell_text(value))
    except ValueError:
        return math.nan


def all_numeric(values: Iterable[str]) -> bool:
    """Return whether all values, as written on a command line, are finite numbers."""
    numbers = [to_float(value) for value in values]
    return bool(numbers) and all(math.isfinite(value) for value in numbers)


def prefers_log_scale(numbers: Iterable[float]) -> bool:
    """Return whether an axis for `numbers` should be logarithmic: all positive, spanning more than a factor of 20."""
    finite = [value for value in numbers if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) > 20 * min(finite)


def as_table(comparison: Comparison) -> Table:
    """Format the ranking for the terminal, the best group in color."""
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title=Text(escape_control(comparison.full_title)),
        title_justify="left", title_style="bold",
    )  # fmt: skip
    header, rows = table_rows(comparison)
    numeric = numeric_columns(header)
    if len(comparison.choices) > 2:
        header[1:-4] = headings(comparison.choices)
    for column, name in enumerate(header):
        heading = Text(escape_control(name).replace(" ", "\n"))
        # Numbers are never wrapped, text may be.
        if column in numeric:
            table.add_column(heading, justify="right", no_wrap=True)
        else:
            table.add_column(heading, overflow="fold", min_width=min(12, len(name)))
    for index, (group, row) in enumerate(zip(group_trials(comparison), rows, strict=True)):
        is_best = index == 0 and not math.isnan(group.mean(comparison.metric))
        style = "bold green" if is_best else "red" if group.count(*FAILED_STATUSES) else None
        table.add_row(*(Text(escape_control(cell)) for cell in row), style=style)
    return table


def to_markdown(comparison: Comparison) -> str:
    """Format the ranking as a Markdown table, the best group in bold, with a list of the failed trials below."""
    header, rows = table_rows(comparison)
    if rows and rows[0][0]:
        rows[0] = [f"**{cell}**" if cell else "" for cell in rows[0]]
    right = numeric_columns(header)
    lines = [f"## {single_line(comparison.full_title)}", ""]
    lines.append(_markdown_row(header))
    lines.append(_markdown_row(["---:" if column in right else "---" for column in range(len(header))]))
    lines += [_markdown_row(row) for row in rows]
    failures = failed_trials(comparison)
    if failures:
        lines += ["", *(f"- {line}" for line in failures)]
    return "\n".join(lines) + "\n"


def to_csv(comparison: Comparison) -> str:
    """Format all trials as CSV, in the order of the sweep, with unrounded numbers."""
    trials = comparison.trials
    first = ["name", *comparison.swept, "status", "reason", "reused", *comparison.metrics, "seconds"]
    rest = [column for column in trials if column not in (*first, "run_id")]
    columns = [column for column in dict.fromkeys([*first, *rest, "run_id"]) if column in trials]
    return str(trials[columns].map(safe_cell).to_csv(index=False, lineterminator="\n"))


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
    reasons = group.reasons()
    return f"{text}: {truncate(escape_control(reasons[0]), max(20, width - len(text)))}" if reasons else text


def format_mean_std(group: TrialGroup, metric: str, over_seeds: bool) -> str:
    """Format a group's metric as `62.31 %`, or over seeds as `62.31 ± 0.40 % (3)`; empty without a value."""
    mean, std = group.mean(metric), group.std(metric)
    if math.isnan(mean):
        return ""
    value = format_metric(metric, mean)
    if not over_seeds:
        return value + unit(metric)
    spread = "" if math.isnan(std) else f" ± {format_metric(metric, std)}"
    return f"{value}{spread}{unit(metric)} ({len(group.finite_values(metric))})"


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


def table_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the header and a row of text for each group, best first."""
    metric = comparison.metric
    split = metric.partition("/")[0] if metric in ("train/loss", "train/accuracy") else "val"
    other = f"{split}/loss" if metric == f"{split}/accuracy" else f"{split}/accuracy"
    choices = comparison.choices or ((SEED_KEY,) if comparison.averages_seeds else ("name",))
    header = ["rank", *choices, display_name(metric), display_name(other), "time", "status"]
    rows, means = [], []
    for group in group_trials(comparison):
        means.append(group.mean(metric))
        rank = "" if math.isnan(means[-1]) else str(means.index(means[-1]) + 1)
        values = group.values or (", ".join(cell_text(member.get(choices[0])) for member in group.members),)
        seconds = group.mean("seconds")
        rows.append([
            rank, *(shorten_value(value) for value in values),
            format_mean_std(group, metric, comparison.averages_seeds), format_mean_std(group, other, over_seeds=False),
            "" if math.isnan(seconds) else format_duration(seconds), status_of(group, metric),
        ])  # fmt: skip
    return header, rows


def _name(comparison: Comparison, trial: dict[Any, Any]) -> str:
    # A trial that never started has no run, hence no name.
    return cell_text(trial.get("name")) or " ".join(
        f"{column}={cell_text(trial[column])}" for column in comparison.swept
    )


def numeric_columns(header: list[str]) -> tuple[int, ...]:
    """Return the indices of the numeric columns of `table_rows`."""
    return (0, *range(len(header) - 4, len(header) - 1))


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
