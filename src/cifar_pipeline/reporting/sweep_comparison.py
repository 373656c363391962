"""Compare a sweep's trials: average those that differ only in seed, fold or split, and rank the averages."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from cifar_pipeline.reporting.metric_names import display_name, heading_name
from cifar_pipeline.utils.text import count_noun, one_line

# Keys whose values repeat a choice instead of being one, with the noun for one of their values: trials that differ only
# in them are averaged.
REPLICATE_KEYS = {"data.fold": "fold", "data.split_seed": "split", "seed": "seed"}
# Of these, the keys that change the validation images, and with them the training images.
SPLIT_KEYS = ("data.fold", "data.split_seed")
FINISHED = "FINISHED"
# Stopped by the pruner of a search: neither finished nor failed. MLflow has no such status.
PRUNED = "PRUNED"
FAILED_STATUSES = ("FAILED", "KILLED")


@dataclass(frozen=True)
class Comparison:
    """Trials of a sweep with their metrics.

    Attributes:
        title: names the sweep and the data set.
        trials: one row per trial, in the order of the sweep, with columns `run_id`, `name`, `status` (MLflow's, or
            PRUNED), `reason` (of a failure or of pruning, or empty), `reused` (the run belongs to another sweep), the
            swept keys (values as on the command line), the metrics (`val/accuracy`, ...; NaN if not finished) and
            `seconds`; and, without which all trials count as trained on the same data, `dataset` (its name), `images`
            (equal for trials with the same training and validation images), `train_images` and `val_images` (numbers).
        swept: the swept columns of `trials`, in order.
        histories: by run id, one row per epoch with columns `epoch` and the metrics.
        metric: the metric to rank by.
        mode: whether larger or smaller values of it are better, `max` or `min`.
        checkpoint: the weights that the metrics of `trials` are of, `last` or `best`.
        significance_level: a difference counts as more than chance if its p-value is below this.
        objectives: of a search, each a metric and its mode, the one to rank by first.
    """

    title: str
    trials: pd.DataFrame
    swept: tuple[str, ...]
    histories: dict[str, pd.DataFrame] = field(default_factory=dict)
    metric: str = "val/accuracy"
    mode: str = "max"
    checkpoint: str = "last"
    significance_level: float = field(kw_only=True)
    objectives: tuple[tuple[str, str], ...] = ()

    @property
    def full_title(self) -> str:
        """The title with the metric and the checkpoint that the trials are ranked by, and what is averaged over."""
        averaged = f", mean ± standard deviation over {self.over}" if self.over else ""
        return f"{self.title}: {display_name(self.metric)} of the {self.checkpoint} weights{averaged}"

    @property
    def heading(self) -> str:
        """The metric, as the heading of a figure of the trials."""
        return heading_name(self.metric) + (" of the best weights" if self.checkpoint == "best" else "")

    @property
    def choices(self) -> tuple[str, ...]:
        """The swept columns that are not averaged over."""
        return tuple(column for column in self.swept if column not in REPLICATE_KEYS)

    @property
    def replicates(self) -> tuple[str, ...]:
        """The swept columns that are averaged over: folds first, seeds last."""
        return tuple(key for key in REPLICATE_KEYS if key in self.swept)

    @cached_property
    def over(self) -> str:
        """The replicates that are averaged over: `5 folds`, or `15 runs (5 folds, 3 seeds)`; empty without any."""
        counts = {REPLICATE_KEYS[key]: self.trials[key].nunique() for key in self.replicates if key in self.trials}
        several = {noun: count for noun, count in counts.items() if count > 1} or dict([*counts.items()][:1])
        parts = [count_noun(count, noun) for noun, count in several.items()]
        return parts[0] if len(parts) == 1 else f"{self.runs_per_group} runs ({', '.join(parts)})" if parts else ""

    @cached_property
    def runs_per_group(self) -> int:
        """The number of trials that are averaged, of the largest group: a running sweep lacks some; 0 if none are."""
        return max((len(group.members) for group in self.groups), default=0) if self.replicates else 0

    @cached_property
    def groups(self) -> "tuple[TrialGroup, ...]":
        """The groups of trials that are averaged, as `group_trials` ranks them."""
        return tuple(group_trials(self))

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics of the table, the one to rank by first."""
        columns = [str(column) for column in self.trials if "/" in str(column) and column not in self.swept]
        return (self.metric, *(column for column in columns if column != self.metric))


@dataclass(frozen=True)
class TrialGroup:
    """A row of the ranking: a single trial, or the trials that differ only in the keys that are averaged over.

    Attributes:
        values: values of the swept columns that are not averaged over.
        members: rows of the trials, in the order of the sweep.
    """

    values: tuple[str, ...]
    members: tuple[dict[str, Any], ...]

    def finite_values(self, column: str) -> list[float]:
        """Return the finite values of the finished members."""
        return [to_float(member.get(column)) for member in self.with_value(column)]

    def with_value(self, column: str) -> list[dict[str, Any]]:
        """Return the finished members with a finite value."""
        return [
            member
            for member in self.members
            if cell_text(member["status"]) == FINISHED and math.isfinite(to_float(member.get(column)))
        ]

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
        """List the distinct reasons of failures and of pruning, each on one line."""
        reasons = (
            single_line(member.get("reason"))
            for member in self.members
            if cell_text(member["status"]) in (*FAILED_STATUSES, PRUNED)
        )
        return list(dict.fromkeys(reason for reason in reasons if reason))

    def representative(self, metric: str) -> dict[str, Any]:
        """Return the first member with a value of the metric, or the first member if none has one."""
        return next(iter(self.with_value(metric)), self.members[0])


def group_trials(comparison: Comparison, separate: bool = False) -> list[TrialGroup]:
    """Group the trials that are averaged, best first: by the mean; those without a value last, as in the sweep.

    A group with fewer finished trials than another comes after all that have as many as that one: its mean is over
    other seeds or images, and a choice of which some trials fail should not win by the others. Ties keep the order of
    the sweep. A run that occurs twice in the sweep counts once.

    Args:
        separate: return each trial as a group of its own.
    """
    members: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    seen: set[str] = set()
    columns = comparison.swept if separate else comparison.choices
    ungrouped = separate or not comparison.replicates
    for index, trial in enumerate(comparison.trials.to_dict("records")):
        run = cell_text(trial.get("run_id"))
        if run and run in seen:
            continue
        seen.add(run)
        values = tuple(cell_text(trial[column]) for column in columns)
        members.setdefault((*values, index if ungrouped else -1), []).append({str(key): trial[key] for key in trial})
    groups = [TrialGroup(values[:-1], tuple(trials)) for values, trials in members.items()]
    return [group for _, group in sorted(_with_sort_keys(groups, comparison), key=lambda entry: entry[0])]


SortKey = tuple[bool, bool, float]


def _with_sort_keys(groups: Iterable[TrialGroup], comparison: Comparison) -> list[tuple[SortKey, TrialGroup]]:
    """Return each group with whether it has no value, whether it has fewer values than another, and its mean."""
    values = [(group.finite_values(comparison.metric), group) for group in groups]
    most = max((len(finite) for finite, _ in values), default=0)
    sign = 1 if comparison.mode == "min" else -1
    return [
        ((not finite, len(finite) < most, sign * statistics.fmean(finite) if finite else 0.0), group)
        for finite, group in values
    ]


def ranks(comparison: Comparison) -> list[int | None]:
    """Return the rank of each group: 1 is the best, ties share one, and a group without a value has none."""
    keys = [key for key, _ in _with_sort_keys(comparison.groups, comparison)]
    first = {key: index + 1 for index, key in reversed([*enumerate(keys)])}
    return [None if key[0] else first[key] for key in keys]


def leaderboard(comparison: Comparison) -> pd.DataFrame:
    """Rank the groups, best first; those without a value come last and have no rank. Ties share a rank.

    Returns:
        Columns `rank`, the choices, for each metric the mean over the finished members (`val/accuracy`), the sample
        standard deviation (`val/accuracy std`) and the number of values (`val/accuracy n`), `seconds` (mean), `trials`,
        `finished`, `failed` (including killed trials), `reused`, then `run_id`, `name` and what is averaged over
        (`seed`, ...) of the first finished member.
    """
    rows = []
    for rank, group in zip(ranks(comparison), comparison.groups, strict=True):
        row: dict[str, Any] = {"rank": pd.NA if rank is None else rank}
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
        row |= {key: cell_text(trial[key]) for key in comparison.replicates}
        rows.append(row)
    columns = ["rank", *comparison.choices, *(f"{m}{s}" for m in comparison.metrics for s in ("", " std", " n"))]
    columns += ["seconds", "trials", "finished", "failed", "reused", "run_id", "name", *comparison.replicates]
    return pd.DataFrame(rows, columns=columns).astype({"rank": "Int64"})


def winner(comparison: Comparison) -> "pd.Series[Any] | None":
    """Return the first row of `leaderboard`; None while no trial has finished with a value."""
    table = leaderboard(comparison)
    if table.empty or pd.isna(table["rank"].iloc[0]):
        return None
    return table.iloc[0]


def group_name(comparison: Comparison, group: TrialGroup) -> str:
    """Name a group by its choices, `optimizer=adam, loss=mse`; without any, by what it averages, or by its trial."""
    values = zip(comparison.choices, group.values, strict=True)
    name = f"mean over {comparison.over}" if comparison.replicates else cell_text(group.members[0].get("name"))
    return ", ".join(f"{choice}={value}" for choice, value in values) or name


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
