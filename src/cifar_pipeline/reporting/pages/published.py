"""How a result stands beside the one that this repository publishes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cifar_pipeline.reporting.interval import wilson
from cifar_pipeline.reporting.pages.document import percent


@dataclass(frozen=True)
class Compared:
    """The verdict in words and, where both can be compared, rows of (what, ours, published) and the latter's origin."""

    words: str
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    origin: str = ""


@dataclass(frozen=True)
class Result:
    """A result's accuracy with its interval, and the numbers beside it."""

    accuracy: float
    interval: tuple[float, float]
    others: Mapping[str, float]

    @staticmethod
    def of(metrics: Mapping[str, Any]) -> "Result":
        """From the values of metrics.json."""
        test, images = metrics["test"], int(metrics["dataset"]["sizes"]["test"])
        return Result(float(test["accuracy"]), wilson(round(test["accuracy"] * images), images), test)

    def cells(self) -> list[tuple[str, str]]:
        """What a table says of it."""
        return [
            ("accuracy", percent(self.accuracy)),
            ("95 % interval", f"{100 * self.interval[0]:.2f} to {percent(self.interval[1])}"),
            ("right among the first three", percent(self.others["top3_accuracy"])),
            ("loss", f"{self.others['loss']:.4f}"),
            ("calibration error", percent(self.others["calibration_error"])),
        ]


def compared(metrics: Mapping[str, Any], published: Mapping[str, Any]) -> Compared:
    """Compare metrics.json's values with those that are committed; say why, where there is nothing to compare."""
    if not published:
        return Compared("There is no published result to compare with: no commit here holds reports/metrics.json.")
    if "error" in published:
        return Compared(f"Whether there is a published result to compare with is not known: {published['error']}.")
    theirs, origin = published["metrics"], _origin(published)
    try:
        if metrics["dataset"]["name"] != theirs["dataset"]["name"]:
            accuracy, data = percent(theirs["test"]["accuracy"]), theirs["dataset"]["title"]
            return Compared(
                f"There is nothing to compare: the published result ({origin}) is {accuracy} on {data}, this one is on "
                f"{metrics['dataset']['title']}."
            )
        ours, other = Result.of(metrics), Result.of(theirs)
        same_data = metrics["dataset"]["hash"] == theirs["dataset"]["hash"]
        rows = [(what, mine, his) for (what, mine), (_, his) in zip(ours.cells(), other.cells(), strict=True)]
    except (KeyError, TypeError, ValueError):
        return Compared(f"The published result ({origin}) is written in another way than this one.")
    return Compared(_verdict(ours, other, same_data), rows, origin)


def _origin(published: Mapping[str, Any]) -> str:
    experiment = f"experiment {published['experiment']}, " if published.get("experiment") else ""
    return f"{experiment}commit {published['commit']} of {published['date']}"


def _verdict(ours: Result, theirs: Result, same_data: bool) -> str:
    points = 100 * (ours.accuracy - theirs.accuracy)
    apart = ours.interval[0] > theirs.interval[1] or theirs.interval[0] > ours.interval[1]
    data = "" if same_data else " The two were trained on different parts of the data set."
    if points == 0:
        return f"As published: both are right in {percent(ours.accuracy)} of the test images.{data}"
    direction = "above" if points > 0 else "below"
    chance = (
        "lie apart: the choice of test images does not explain the difference"
        if apart
        else "overlap: the choice of test images alone might make such a difference"
    )
    return (
        f"This run's {percent(ours.accuracy)} is {abs(points):.2f} points {direction} the published "
        f"{percent(theirs.accuracy)}. The intervals {chance}.{data}"
    )
