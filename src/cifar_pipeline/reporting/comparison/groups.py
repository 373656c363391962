"""What a sweep found, as a table of its points, and those points grouped over their seeds, best first."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from cifar_pipeline.reporting.metric_names import lower_is_better

SEED = "seed"
FINISHED = "FINISHED"
BROKEN = ("FAILED", "KILLED")


@dataclass(frozen=True)
class Comparison:
    """The points of a sweep, ready to be compared.

    Attributes:
        title: names the sweep and the data set.
        points: a row per point, in the order of the sweep, with columns `run_id`, `name`, `status` (as MLflow writes
            it), `reason` (why it failed, or empty), `reused` (the run belongs to another sweep), the swept ones (as
            written on the command line), the metrics (`val/accuracy`, ...; NaN where not finished) and `seconds`.
        swept: the columns of `points` that are swept, in order.
        histories: by run id, a row per epoch with columns `epoch` and the metrics.
        metric: what the points are compared by.
    """

    title: str
    points: pd.DataFrame
    swept: tuple[str, ...]
    histories: dict[str, pd.DataFrame] = field(default_factory=dict)
    metric: str = "val/accuracy"

    @property
    def choices(self) -> tuple[str, ...]:
        """What is swept beside the seed."""
        return tuple(column for column in self.swept if column != SEED)

    @property
    def over_seeds(self) -> bool:
        """Whether points that differ in their seed only are taken together."""
        return SEED in self.swept

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics of the table, the one that is compared by first."""
        found = [str(column) for column in self.points if "/" in str(column) and column not in self.swept]
        return (self.metric, *(column for column in found if column != self.metric))


@dataclass(frozen=True)
class Group:
    """Points that are compared as one: a single point, or those that differ in their seed only.

    Attributes:
        values: what the swept columns hold, less the seed where it is grouped over.
        members: the points' rows, in the order of the sweep.
    """

    values: tuple[str, ...]
    members: tuple[dict[str, Any], ...]

    def numbers(self, column: str) -> list[float]:
        """List the finite values that the finished members have."""
        values = [number(member.get(column)) for member in self.members if text(member["status"]) == FINISHED]
        return [value for value in values if math.isfinite(value)]

    def mean(self, column: str) -> float:
        """Average over the finished members; NaN without any. The members' order makes no difference, to the bit."""
        numbers = self.numbers(column)
        return statistics.fmean(numbers) if numbers else math.nan

    def deviation(self, column: str) -> float:
        """Sample standard deviation over the finished members; NaN for fewer than two."""
        numbers = self.numbers(column)
        return statistics.stdev(numbers) if len(numbers) > 1 else math.nan

    def count(self, *statuses: str) -> int:
        """Count the members with one of `statuses`."""
        return sum(text(member["status"]) in statuses for member in self.members)

    def reused(self) -> int:
        """Count the members whose run belongs to another sweep."""
        return sum(text(member.get("reused")).lower() in ("true", "1", "1.0") for member in self.members)

    def reasons(self) -> list[str]:
        """List why members failed, each reason once and on one line."""
        reasons = (one_line(member.get("reason")) for member in self.members if text(member["status"]) in BROKEN)
        return list(dict.fromkeys(reason for reason in reasons if reason))

    def first(self, metric: str) -> dict[str, Any]:
        """Pick the member listed first of those that have the metric, or of all where none has it."""
        with_value = (member for member in self.members if Group((), (member,)).numbers(metric))
        return next(with_value, self.members[0])


def groups(comparison: Comparison, apart: bool = False) -> list[Group]:
    """Group the points over their seeds, best first; those without a value come last, in the order of the sweep.

    Of equals, the one listed first is first. A run that the sweep met twice counts once.

    Args:
        apart: make each point a group of its own instead.
    """
    grouped: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    seen: set[str] = set()
    columns = comparison.swept if apart else comparison.choices
    for place, point in enumerate(comparison.points.to_dict("records")):
        run = text(point.get("run_id"))
        if run and run in seen:
            continue
        seen.add(run)
        values = tuple(text(point[column]) for column in columns)
        alone = apart or not comparison.over_seeds
        grouped.setdefault((*values, place if alone else -1), []).append({str(key): point[key] for key in point})
    found = [Group(values[:-1], tuple(members)) for values, members in grouped.items()]
    sign = 1 if lower_is_better(comparison.metric) else -1

    def place_of(group: Group) -> tuple[bool, float]:
        mean = group.mean(comparison.metric)
        return math.isnan(mean), 0.0 if math.isnan(mean) else sign * mean

    return sorted(found, key=place_of)


def ranked(comparison: Comparison) -> pd.DataFrame:
    """List the groups, best first; those without a value come last and have no rank. Equals share a rank.

    Returns:
        Columns `rank`, the swept ones, for each metric its mean over the finished members (`val/accuracy`), its sample
        standard deviation (`val/accuracy std`) and the number of values (`val/accuracy n`), `seconds` (mean), `points`,
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
            row[f"{metric} std"] = group.deviation(metric)
            row[f"{metric} n"] = len(group.numbers(metric))
        row["seconds"] = group.mean("seconds")
        row["points"] = len(group.members)
        row["finished"], row["failed"] = group.count(FINISHED), group.count(*BROKEN)
        row["reused"] = group.reused()
        first = group.first(comparison.metric)
        row |= {"run_id": text(first.get("run_id")), "name": text(first.get("name"))}
        if comparison.over_seeds:
            row[SEED] = text(first[SEED])
        rows.append(row)
    columns = ["rank", *comparison.choices, *(f"{m}{s}" for m in comparison.metrics for s in ("", " std", " n"))]
    columns += ["seconds", "points", "finished", "failed", "reused", "run_id", "name", *[SEED] * comparison.over_seeds]
    return pd.DataFrame(rows, columns=columns).astype({"rank": "Int64"})


def winner(comparison: Comparison) -> "pd.Series[Any] | None":
    """Pick the best row of `ranked`; None while no point has finished with a value."""
    table = ranked(comparison)
    if table.empty or pd.isna(table["rank"].iloc[0]):
        return None
    return table.iloc[0]


def text(value: object) -> str:
    """Write a cell; what is missing is empty."""
    return "" if value is None or bool(pd.isna(value)) else str(value)  # type: ignore[call-overload]


def one_line(value: object) -> str:
    """Write a cell with all its blanks and line ends as single blanks."""
    return " ".join(text(value).split())


def number(value: object) -> float:
    """Read a number; NaN for what is none."""
    try:
        return float(text(value))
    except ValueError:
        return math.nan


def all_numeric(values: Iterable[str]) -> bool:
    """Say whether all values, as written on a command line, are finite numbers."""
    numbers = [number(value) for value in values]
    return bool(numbers) and all(math.isfinite(value) for value in numbers)


def wants_log(numbers: Iterable[float]) -> bool:
    """Say whether an axis for `numbers` is better logarithmic: all positive, and more than a factor of 20 apart."""
    known = [value for value in numbers if math.isfinite(value)]
    return bool(known) and min(known) > 0 and max(known) > 20 * min(known)
