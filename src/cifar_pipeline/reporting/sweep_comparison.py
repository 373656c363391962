"""What a sweep found, as a table of its trials, and those trials grouped over their seeds, best first.

A sweep's comparison in letters: a table for the terminal, Markdown for a page, CSV for a program.
"""

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

from cifar_pipeline.reporting.metrics import display_name, is_fraction, lower_is_better
from cifar_pipeline.reporting.tables import safe_cell
from cifar_pipeline.utils.console import format_duration
from cifar_pipeline.utils.text import escape_control

SEED_KEY = "seed"
FINISHED = "FINISHED"
FAILED_STATUSES = ("FAILED", "KILLED")


@dataclass(frozen=True)
class Comparison:
    """The trials of a sweep, ready to be compared.

    Attributes:
        title: names the sweep and the data set.
        trials: a row per trial, in the order of the sweep, with columns `run_id`, `name`, `status` (as MLflow writes
            it), `reason` (why it failed, or empty), `reused` (the run belongs to another sweep), the swept ones (as
            written on the command line), the metrics (`val/accuracy`, ...; NaN where not finished) and `seconds`.
        swept: the columns of `trials` that are swept, in order.
        histories: by run id, a row per epoch with columns `epoch` and the metrics.
        metric: what the trials are compared by.
    """

    title: str
    trials: pd.DataFrame
    swept: tuple[str, ...]
    histories: dict[str, pd.DataFrame] = field(default_factory=dict)
    metric: str = "val/accuracy"

    @property
    def choices(self) -> tuple[str, ...]:
        """What is swept beside the seed."""
        return tuple(column for column in self.swept if column != SEED_KEY)

    @property
    def averages_seeds(self) -> bool:
        """Whether trials that differ in their seed only are taken together."""
        return SEED_KEY in self.swept

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics of the table, the one that is compared by first."""
        found = [str(column) for column in self.trials if "/" in str(column) and column not in self.swept]
        return (self.metric, *(column for column in found if column != self.metric))


@dataclass(frozen=True)
class TrialGroup:
    """Trials that are compared as one: a single trial, or those that differ in their seed only.

    Attributes:
        values: what the swept columns hold, less the seed where it is grouped over.
        members: the trials' rows, in the order of the sweep.
    """

    values: tuple[str, ...]
    members: tuple[dict[str, Any], ...]

    def numbers(self, column: str) -> list[float]:
        """List the finite values that the finished members have."""
        values = [to_float(member.get(column)) for member in self.members if cell_text(member["status"]) == FINISHED]
        return [value for value in values if math.isfinite(value)]

    def mean(self, column: str) -> float:
        """Average over the finished members; NaN without any. The members' order makes no difference, to the bit."""
        numbers = self.numbers(column)
        return statistics.fmean(numbers) if numbers else math.nan

    def std(self, column: str) -> float:
        """Sample standard deviation over the finished members; NaN for fewer than two."""
        numbers = self.numbers(column)
        return statistics.stdev(numbers) if len(numbers) > 1 else math.nan

    def count(self, *statuses: str) -> int:
        """Count the members with one of `statuses`."""
        return sum(cell_text(member["status"]) in statuses for member in self.members)

    def reused(self) -> int:
        """Count the members whose run belongs to another sweep."""
        return sum(cell_text(member.get("reused")).lower() in ("true", "1", "1.0") for member in self.members)

    def reasons(self) -> list[str]:
        """List why members failed, each reason once and on one line."""
        reasons = (
            single_line(member.get("reason"))
            for member in self.members
            if cell_text(member["status"]) in FAILED_STATUSES
        )
        return list(dict.fromkeys(reason for reason in reasons if reason))

    def first(self, metric: str) -> dict[str, Any]:
        """Pick the member listed first of those that have the metric, or of all where none has it."""
        with_value = (member for member in self.members if TrialGroup((), (member,)).numbers(metric))
        return next(with_value, self.members[0])


def groups(comparison: Comparison, apart: bool = False) -> list[TrialGroup]:
    """Group the trials over their seeds, best first; those without a value come last, in the order of the sweep.

    Of equals, the one listed first is first. A run that the sweep met twice counts once.

    Args:
        apart: make each trial a group of its own instead.
    """
    grouped: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    seen: set[str] = set()
    columns = comparison.swept if apart else comparison.choices
    for place, trial in enumerate(comparison.trials.to_dict("records")):
        run = cell_text(trial.get("run_id"))
        if run and run in seen:
            continue
        seen.add(run)
        values = tuple(cell_text(trial[column]) for column in columns)
        alone = apart or not comparison.averages_seeds
        grouped.setdefault((*values, place if alone else -1), []).append({str(key): trial[key] for key in trial})
    found = [TrialGroup(values[:-1], tuple(members)) for values, members in grouped.items()]
    sign = 1 if lower_is_better(comparison.metric) else -1

    def place_of(group: TrialGroup) -> tuple[bool, float]:
        mean = group.mean(comparison.metric)
        return math.isnan(mean), 0.0 if math.isnan(mean) else sign * mean

    return sorted(found, key=place_of)


def leaderboard(comparison: Comparison) -> pd.DataFrame:
    """List the groups, best first; those without a value come last and have no rank. Equals share a rank.

    Returns:
        Columns `rank`, the swept ones, for each metric its mean over the finished members (`val/accuracy`), its sample
        standard deviation (`val/accuracy std`) and the number of values (`val/accuracy n`), `seconds` (mean), `trials`,
        `finished`, `failed` (the killed ones too), `reused`, then `run_id`, `name` and, where it is swept, `seed` of
        the finished member listed first.
    """
    rows = []
    means = [group.mean(comparison.metric) for group in groups(comparison)]
    for group, mean in zip(groups(comparison), means, strict=True):
        row: dict[str, Any] = {"rank": pd.NA if math.isnan(mean) else means.index(mean) + 1}
        row |= dict(zip(comparison.choices, group.values, strict=True))
        for metric in comparison.metrics:
            row[metric] = group.mean(metric)
            row[f"{metric} std"] = group.std(metric)
            row[f"{metric} n"] = len(group.numbers(metric))
        row["seconds"] = group.mean("seconds")
        row["trials"] = len(group.members)
        row["finished"], row["failed"] = group.count(FINISHED), group.count(*FAILED_STATUSES)
        row["reused"] = group.reused()
        first = group.first(comparison.metric)
        row |= {"run_id": cell_text(first.get("run_id")), "name": cell_text(first.get("name"))}
        if comparison.averages_seeds:
            row[SEED_KEY] = cell_text(first[SEED_KEY])
        rows.append(row)
    columns = ["rank", *comparison.choices, *(f"{m}{s}" for m in comparison.metrics for s in ("", " std", " n"))]
    columns += [
        "seconds",
        "trials",
        "finished",
        "failed",
        "reused",
        "run_id",
        "name",
        *[SEED_KEY] * comparison.averages_seeds,
    ]
    return pd.DataFrame(rows, columns=columns).astype({"rank": "Int64"})


def winner(comparison: Comparison) -> "pd.Series[Any] | None":
    """Pick the best row of `ranked`; None while no trial has finished with a value."""
    table = leaderboard(comparison)
    if table.empty or pd.isna(table["rank"].iloc[0]):
        return None
    return table.iloc[0]


def cell_text(value: object) -> str:
    """Write a cell; what is missing is empty."""
    return "" if value is None or bool(pd.isna(value)) else str(value)  # type: ignore[call-overload]


def single_line(value: object) -> str:
    """Write a cell with all its blanks and line ends as single blanks."""
    return " ".join(cell_text(value).split())


def to_float(value: object) -> float:
    """Read a number; NaN for what is none."""
    try:
        return float(cell_text(value))
    except ValueError:
        return math.nan


def all_numeric(values: Iterable[str]) -> bool:
    """Say whether all values, as written on a command line, are finite numbers."""
    numbers = [to_float(value) for value in values]
    return bool(numbers) and all(math.isfinite(value) for value in numbers)


def prefers_log_scale(numbers: Iterable[float]) -> bool:
    """Say whether an axis for `numbers` is better logarithmic: all positive, and more than a factor of 20 apart."""
    known = [value for value in numbers if math.isfinite(value)]
    return bool(known) and min(known) > 0 and max(known) > 20 * min(known)


def as_table(comparison: Comparison) -> Table:
    """Lay out the groups, best first, the winner in colour; as wide as the console lets it be."""
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title=Text(escape_control(comparison.title)),
        title_justify="left", title_style="bold",
    )  # fmt: skip
    header, rows = table_rows(comparison)
    numbers = numeric_columns(header)
    if len(comparison.choices) > 2:
        header[1:-4] = headings(comparison.choices)
    for place, name in enumerate(header):
        heading = Text(escape_control(name).replace(" ", "\n"))
        # Numbers are never broken; what is long folds.
        if place in numbers:
            table.add_column(heading, justify="right", no_wrap=True)
        else:
            table.add_column(heading, overflow="fold", min_width=min(12, len(name)))
    for place, (group, row) in enumerate(zip(groups(comparison), rows, strict=True)):
        won = place == 0 and not math.isnan(group.mean(comparison.metric))
        style = "bold green" if won else "red" if group.count(*FAILED_STATUSES) else None
        table.add_row(*(Text(escape_control(cell)) for cell in row), style=style)
    return table


def to_markdown(comparison: Comparison) -> str:
    """Write the groups as a Markdown table, best first, the winner in bold, and below it each failed trial."""
    header, rows = table_rows(comparison)
    if rows and rows[0][0]:
        rows[0] = [f"**{cell}**" if cell else "" for cell in rows[0]]
    right = numeric_columns(header)
    lines = [f"## {single_line(comparison.title)}", ""]
    lines.append(_markdown_row(header))
    lines.append(_markdown_row(["---:" if place in right else "---" for place in range(len(header))]))
    lines += [_markdown_row(row) for row in rows]
    failures = failed_trials(comparison)
    if failures:
        lines += ["", *(f"- {line}" for line in failures)]
    return "\n".join(lines) + "\n"


def to_csv(comparison: Comparison) -> str:
    """Write every trial, in the order of the sweep, its numbers in full."""
    points = comparison.trials
    first = ["name", *comparison.swept, "status", "reason", "reused", *comparison.metrics, "seconds"]
    rest = [column for column in points if column not in (*first, "run_id")]
    columns = [column for column in dict.fromkeys([*first, *rest, "run_id"]) if column in points]
    return str(points[columns].map(safe_cell).to_csv(index=False, lineterminator="\n"))


def failed_trials(comparison: Comparison) -> list[str]:
    """Say of each failed trial, in a sentence, which it is and why it failed."""
    lines = []
    for trial in comparison.trials.to_dict("records"):
        status = cell_text(trial["status"])
        if status in FAILED_STATUSES:
            reason = single_line(trial.get("reason")).rstrip(".")
            what = f"{_name(comparison, trial)} {'failed' if status == 'FAILED' else 'was killed'}"
            lines.append(f"{what}: {reason}." if reason else f"{what}, and left no reason.")
    return lines


def status_of(group: TrialGroup, metric: str, width: int = 34) -> str:
    """Say how a group's trials ended, the reason of a failure shortened so that all takes up to about `width`."""
    single = len(group.members) == 1
    counts: dict[str, int] = {}
    for member in group.members:
        status = cell_text(member["status"]).lower() or "unknown"
        counts[status] = counts.get(status, 0) + 1
    words = ", ".join(status if len(counts) == 1 else f"{count} {status}" for status, count in counts.items())
    without = group.count(FINISHED) - len(group.numbers(metric))
    if without:
        words += ", no value" if single else f", {without} without a value"
    if reused := group.reused():
        words += ", reused" if reused == len(group.members) else f", {reused} reused"
    reasons = group.reasons()
    return f"{words}: {truncate(escape_control(reasons[0]), max(20, width - len(words)))}" if reasons else words


def format_mean_std(group: TrialGroup, metric: str, grouped: bool) -> str:
    """Write a group's metric: `62.31 %`, or over seeds `62.31 ± 0.40 % (3)`; empty without a value."""
    mean, deviation = group.mean(metric), group.std(metric)
    if math.isnan(mean):
        return ""
    value, spread, unit = (
        format_number(metric, mean),
        format_number(metric, deviation),
        " %" if is_fraction(metric) else "",
    )
    if not grouped:
        return value + unit
    return f"{value}{'' if math.isnan(deviation) else f' ± {spread}'}{unit} ({len(group.numbers(metric))})"


def format_missing(group: TrialGroup, metric: str) -> str:
    """Say how many of a group's trials its mean lacks; empty where it lacks none."""
    broken, without = group.count(*FAILED_STATUSES), len(group.members) - len(group.numbers(metric))
    # A mean over fewer seeds than its neighbours' must be seen to be one.
    return f"{broken} failed" if broken else f"{without} missing" if without else ""


def format_number(metric: str, value: float, digits: int = 2) -> str:
    """Write the number alone: per cent for an accuracy, otherwise two digits more, and large ones by their power."""
    if is_fraction(metric):
        return f"{100 * value:.{digits}f}"
    return f"{value:.{digits + 2}f}" if abs(value) < 1000 else f"{value:.{digits}e}"


def headings(columns: tuple[str, ...]) -> list[str]:
    """Name swept columns by their last part, `lr` for `optimizer.lr`, where that tells them apart."""
    last = [column.rpartition(".")[2] for column in columns]
    return last if len(set(last)) == len(last) else list(columns)


def shorten_value(value: str) -> str:
    """Write a swept value so that it fits a cell: a long number rounded, long words cut; CSV has them in full."""
    if len(value) > 8 and math.isfinite(to_float(value)):
        return f"{to_float(value):.4g}"
    return truncate(escape_control(value), 28)


def truncate(words: str, width: int) -> str:
    """Cut at `width` letters, between words where they are short enough."""
    if len(words) <= width:
        return words
    cut = textwrap.shorten(words, width, placeholder=" …")
    return cut if len(cut) > width // 2 else f"{words[: width - 2]} …"


def table_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Write the table: its header, and a row for each group, best first."""
    metric = comparison.metric
    part = metric.rpartition("/")[0]
    other = f"{part}/accuracy" if metric == f"{part}/loss" else f"{part}/loss"
    choices = comparison.choices or ((SEED_KEY,) if comparison.averages_seeds else ("name",))
    header = ["rank", *choices, display_name(metric), display_name(other), "time", "status"]
    rows, means = [], []
    for group in groups(comparison):
        means.append(group.mean(metric))
        rank = "" if math.isnan(means[-1]) else str(means.index(means[-1]) + 1)
        values = group.values or (", ".join(cell_text(member.get(choices[0])) for member in group.members),)
        seconds = group.mean("seconds")
        rows.append([
            rank, *(shorten_value(value) for value in values),
            format_mean_std(group, metric, comparison.averages_seeds), format_mean_std(group, other, grouped=False),
            "" if math.isnan(seconds) else format_duration(seconds), status_of(group, metric),
        ])  # fmt: skip
    return header, rows


def _name(comparison: Comparison, trial: dict[Any, Any]) -> str:
    # A trial that never began has no run, so no name.
    return cell_text(trial.get("name")) or " ".join(
        f"{column}={cell_text(trial[column])}" for column in comparison.swept
    )


def numeric_columns(header: list[str]) -> tuple[int, ...]:
    """Say which columns of the table hold numbers."""
    return (0, *range(len(header) - 4, len(header) - 1))


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
