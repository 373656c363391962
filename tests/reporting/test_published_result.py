"""A result beside the published one: the verdict says no more than the numbers do."""

from typing import Any

import pytest

from cifar_pipeline.reporting.html_report import compare_with_published


def metrics(accuracy: float, name: str = "cifar10", data: str = "d") -> dict[str, Any]:
    dataset = {"name": name, "title": name.upper(), "hash": data, "sizes": {"train": 1, "val": 1, "test": 10000}}
    test = {"accuracy": accuracy, "top3_accuracy": 0.9, "loss": 1.0, "calibration_error": 0.05}
    return {"test": test, "dataset": dataset}


def published(accuracy: float, **others: Any) -> dict[str, Any]:
    return {"commit": "7c78472", "date": "2026-11-25", "experiment": "tutorial", "metrics": metrics(accuracy, **others)}


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        (0.64, 0.6105, "64.00 % is 2.95 points above the published 61.05 %. The intervals lie apart"),
        (0.6105, 0.64, "61.05 % is 2.95 points below the published 64.00 %. The intervals lie apart"),
        (0.615, 0.6105, "0.45 points above the published 61.05 %. The intervals overlap"),
        (0.6105, 0.6105, "As published: both are right in 61.05 % of the test images."),
    ],
)
def test_above_below_or_within_chance(ours: float, theirs: float, says: str) -> None:
    found = compare_with_published(metrics(ours), published(theirs))
    assert says in found.words.replace("\N{NO-BREAK SPACE}", " ")
    assert found.origin == "experiment tutorial, commit 7c78472 of 2026-11-25"
    assert found.rows[0] == (
        "accuracy",
        f"{100 * ours:.2f}\N{NO-BREAK SPACE}%",
        f"{100 * theirs:.2f}\N{NO-BREAK SPACE}%",
    )


def test_another_split_is_said() -> None:
    assert "different parts of the data set" in compare_with_published(metrics(0.6), published(0.6, data="e")).words
    assert "different parts" not in compare_with_published(metrics(0.6), published(0.6)).words


def test_another_data_set_is_not_compared() -> None:
    found = compare_with_published(metrics(0.97, name="digits"), published(0.6105))
    assert found.rows == [] and "is 61.05" in found.words and found.words.endswith("this one is on DIGITS.")


@pytest.mark.parametrize("metrics_there", [{"test": {}}, {"dataset": []}, {}])
def test_what_another_commit_wrote_otherwise_is_not_compared(metrics_there: dict[str, Any]) -> None:
    there = published(0.6) | {"metrics": metrics_there}
    assert "is written in another way" in compare_with_published(metrics(0.6), there).words
