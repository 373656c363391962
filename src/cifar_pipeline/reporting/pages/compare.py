"""compare.html: a sweep's points beside each other, the best one, and how to make it the pipeline's choice."""

import math
from dataclasses import dataclass

from matplotlib.figure import Figure

from cifar_pipeline.reporting.comparison.groups import BROKEN, Comparison, Group, groups, text, winner
from cifar_pipeline.reporting.comparison.tables import cells, failed_points, measured, numeric_places
from cifar_pipeline.reporting.metric_names import in_words
from cifar_pipeline.reporting.pages.document import render
from cifar_pipeline.reporting.pages.embedded import figure_uri


@dataclass(frozen=True)
class Row:
    """A row of the table: what its cells say, whether it is the best, whether some of its points failed."""

    cells: list[str]
    best: bool
    broken: bool


def compare_page(comparison: Comparison, drawings: dict[str, Figure], command: str) -> str:
    """The page as text.

    Args:
        drawings: the figures, each under its heading.
        command: what makes the best point the pipeline's choice; empty where no point has finished.
    """
    header, rows = cells(comparison)
    found, order = groups(comparison), _order(len(header))
    return render(
        "compare.html",
        title=comparison.title,
        points=len(comparison.points),
        metric=in_words(comparison.metric),
        over_seeds=comparison.over_seeds,
        best=_best(comparison, found),
        command=command,
        header=[header[place] for place in order],
        right=[place for place, before in enumerate(order) if before in numeric_places(header)],
        rows=[
            Row(
                [row[before] for before in order],
                place == 0 and _known(group, comparison.metric),
                group.count(*BROKEN) > 0,
            )
            for place, (group, row) in enumerate(zip(found, rows, strict=True))
        ],
        drawings=[
            {"heading": heading, "source": figure_uri(figure), "words": f"{heading}. {_in_words(comparison, found)}"}
            for heading, figure in drawings.items()
        ],
        failed=failed_points(comparison),
    )


def _order(columns: int) -> list[int]:
    """The table's columns with the metric after the rank: a narrow screen shows the first ones only."""
    metric = columns - 4
    return [0, metric, *(place for place in range(1, columns) if place != metric)]


def _best(comparison: Comparison, found: list[Group]) -> dict[str, str] | None:
    if winner(comparison) is None:
        return None
    return {
        "name": _named(comparison, found[0]),
        "value": measured(found[0], comparison.metric, comparison.over_seeds),
    }


def _in_words(comparison: Comparison, found: list[Group]) -> str:
    """What the figures show: the best and the last of those that have a value."""
    known = [group for group in found if _known(group, comparison.metric)]
    if not known:
        return "No point has a value."
    ends = [known[0], *known[-1:]] if len(known) > 1 else known
    said = [
        f"{_named(comparison, group)} with {measured(group, comparison.metric, comparison.over_seeds)}"
        for group in ends
    ]
    return f"{in_words(comparison.metric).capitalize()} from the best, {said[0]}" + (
        f", to the last, {said[1]}." if len(said) > 1 else "."
    )


def _named(comparison: Comparison, group: Group) -> str:
    values = zip(comparison.choices, group.values, strict=True)
    return ", ".join(f"{choice}={value}" for choice, value in values) or text(group.members[0].get("name"))


def _known(group: Group, metric: str) -> bool:
    return not math.isnan(group.mean(metric))
