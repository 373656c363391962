"""confusion.csv and predictions.csv, read back and rendered by DVC."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from dvc_render.vega import VegaRenderer  # type: ignore[import-untyped]

from cifar_pipeline.reporting.tables import write_confusion, write_predictions

CLASSES = ["cat", "dog, big", "ship"]
LABELS = np.array([0, 1, 2, 1])
PREDICTIONS = np.array([0, 2, 2, 1])
PROBABILITIES = np.array([0.5, 1 / 3, 1.0, 0.123456789], np.float32)


def test_confusion_has_a_row_per_image_that_dvc_can_draw(tmp_path: Path) -> None:
    path = tmp_path / "reports" / "confusion.csv"
    write_confusion(path, LABELS, PREDICTIONS, CLASSES)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["actual"], row["predicted"]) for row in rows] == [
        ("cat", "cat"), ("dog, big", "ship"), ("ship", "ship"), ("dog, big", "dog, big"),
    ]  # fmt: skip

    rendered = VegaRenderer(
        [dict(row, rev="workspace") for row in rows], "confusion", template="confusion", x="predicted", y="actual",
        anchors_y_definitions=[{"filename": "confusion.csv", "field": "actual"}], revs_with_datapoints=["workspace"],
    ).partial_html()  # fmt: skip
    content = json.loads(rendered)
    assert content["data"]["values"][1]["actual"] == "dog, big"
    assert content["spec"]["encoding"]["x"]["field"] == "predicted"


def test_predictions_have_known_bytes(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    write_predictions(path, LABELS, PREDICTIONS, PROBABILITIES, CLASSES)
    assert path.read_bytes() == (
        b"index,label,prediction,probability\n"
        b"0,cat,cat,0.500000\n"
        b'1,"dog, big",ship,0.333333\n'
        b"2,ship,ship,1.000000\n"
        b'3,"dog, big","dog, big",0.123457\n'
    )


def test_columns_of_different_lengths_leave_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "confusion.csv"
    write_confusion(path, LABELS, PREDICTIONS, CLASSES)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="shorter"):
        write_confusion(path, LABELS, PREDICTIONS[:2], CLASSES)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
