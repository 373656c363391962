"""`make verify` compares a training with a published row: spread, equal bits, and what differs."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import published_rows
import pytest
import verify
from measure import PACKAGES
from published_rows import PublishedRow, SeedResult, make_row, read_rows, write_row
from scripts import output_of
from train_and_evaluate import Measured, hash_weights

VERSIONS = dict.fromkeys((*PACKAGES, "python"), "1")
RUNTIME = dict.fromkeys(published_rows.ROUNDING_KEYS, "1")
RESULTS = [SeedResult(0, 20.0, 8.0, 62.0, "aa"), SeedResult(1, 24.0, 12.0, 63.0, "bb"), SeedResult(2, 24, 12, 64.0)]
PUBLISHED = PublishedRow("quick", "abc", "f" * 64, "d" * 64, RUNTIME, VERSIONS, RESULTS)


def here(accuracy: float, weights: str = "aa", **changes: object) -> PublishedRow:
    return replace(PUBLISHED, results=[SeedResult(0, 9.0, 5.0, accuracy, weights)], **changes)  # type: ignore[arg-type]


def test_the_interval_is_that_of_another_training() -> None:
    # t(0.975, 2) = 4.3027, s = 1, n = 3
    assert PUBLISHED.prediction_interval() == pytest.approx((63 - 4.9683, 63 + 4.9683), abs=1e-3)
    assert PUBLISHED.spread() == "63.00 ± 1.00 % of 3 seeds [62.00 - 64.00]"


def test_equal_weights_where_nothing_differs_agree() -> None:
    agrees, lines = verify.verdict(PUBLISHED, here(62.0))
    assert agrees and "and they are equal" in lines[-1] and "within 58.03 to 67.97 %" in lines[2]


def test_other_weights_where_nothing_differs_do_not_agree() -> None:
    agrees, lines = verify.verdict(PUBLISHED, here(62.1, "cc"))
    assert not agrees and "BUT THE WEIGHTS DIFFER" in lines[-1]


@pytest.mark.parametrize(("accuracy", "agrees"), [(58.1, True), (57.9, False), (67.9, True), (68.1, False)])
def test_on_another_processor_the_accuracy_decides(accuracy: float, agrees: bool) -> None:
    result = verify.verdict(PUBLISHED, here(accuracy, "cc", runtime=RUNTIME | {"processor": "abacus"}))
    assert result[0] is agrees
    assert result[1][-2:] == [
        "Bits       not expected to be equal; the weights differ",
        "Differs    processor: published 1, here abacus",
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"versions": VERSIONS | {"torch": "2"}}, "torch: published 1, here 2"),
        ({"runtime": RUNTIME | {"threads": "2"}}, "threads: published 1, here 2"),
        ({"runtime": RUNTIME | {"engine": "eager"}}, "engine: published 1, here eager"),
        (
            {"fingerprint": "e" * 64},
            "configuration or code (fingerprint): published ffffffffffff, here eeeeeeeeeeee",
        ),
        ({"data": "e" * 64, "fingerprint": "e" * 64}, "data: published dddddddddddd, here eeeeeeeeeeee"),
    ],
)
def test_what_differs_is_named(changes: dict[str, object], line: str) -> None:
    _, lines = verify.verdict(PUBLISHED, here(62.0, **changes))
    assert lines[-1] == f"Differs    {line}" and "Bits       not expected to be equal; the weights are equal" in lines


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "speedrun.json"
    timing = RUNTIME | {"seconds": 8.0, "images_per_second": 3.0}
    metadata = {"timing": timing, "fingerprint": "f" * 64, "dataset": {"name": "digits", "hash": "d" * 64}}
    measured = {
        result.seed: Measured(result.seconds - 1, result.training, 1.0, result.accuracy, metadata, result.weights)
        for result in RESULTS
    }
    row = make_row("quick", "abc", VERSIONS, measured)
    assert row == PUBLISHED
    write_row(replace(row, recipe="tutorial"), path)
    write_row(row, path)
    assert read_rows(path) == {"quick": row, "tutorial": replace(row, recipe="tutorial")}


def test_an_unknown_row_is_refused_with_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published_rows, "read_rows", lambda: {"quick": PUBLISHED, "tutorial": PUBLISHED})
    monkeypatch.setattr(sys, "argv", ["verify.py", "quik"])
    with pytest.raises(SystemExit, match=r"^ROW=quik: there is no such row .* which has quick, tutorial\.$"):
        verify.main()


def test_the_hash_is_of_the_weights_and_not_of_the_metadata(tmp_path: Path) -> None:
    def save(name: str, value: float, description: str) -> Path:
        weight = onnx.numpy_helper.from_array(np.full((2, 3), value, np.float32), "weight")
        graph = onnx.helper.make_graph([], "network", [], [], initializer=[weight])
        onnx.save(onnx.helper.make_model(graph, doc_string=description), path := tmp_path / name)
        return path

    one, same, other = save("a", 1.0, "one"), save("b", 1.0, "two"), save("c", 1.0 + 2**-23, "one")
    assert hash_weights(one) == hash_weights(same) != hash_weights(other)


@pytest.mark.long
@pytest.mark.skipif("CIFAR10_SOURCE" not in os.environ, reason="needs the real CIFAR-10: set CIFAR10_SOURCE")
def test_a_published_row_is_verified() -> None:
    assert "Bits       " in output_of("verify", "quick")
