"""Metrics of metrics.json compared with their definitions in plain Python."""

import json
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sample_evaluation import HISTORY, METADATA

from cifar_pipeline.reporting.metric_names import BUILT_IN_METRICS
from cifar_pipeline.reporting.metrics import compute_metrics, finite_metrics, training_metrics
from cifar_pipeline.training.metrics import BUILT_IN_NAMES

MONITOR = "val/accuracy"


def random_predictions(images: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, classes, generator=generator)
    return logits.softmax(1), torch.randint(classes, (images,), generator=generator)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """Compute equation 3 of Guo et al. 2017 image by image."""
    binned: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for row, label in zip(probabilities.astype(np.float64), labels, strict=True):
        confidence = row.max()
        binned[min(int(confidence * bins), bins - 1)].append((confidence, float(row.argmax() == label)))
    gaps = [
        len(pairs) * abs(np.mean([c for c, _ in pairs]) - np.mean([r for _, r in pairs])) for pairs in binned if pairs
    ]
    return float(sum(gaps) / len(labels))


@pytest.mark.parametrize(("images", "classes"), [(500, 10), (300, 3), (600, 30)])
def test_the_metrics_agree_with_their_definitions(images: int, classes: int) -> None:
    probabilities, labels = random_predictions(images, classes)
    names = [f"class {k}" for k in range(classes)]
    measured = compute_metrics(probabilities, labels, 1.25, names, calibration_bins=15)

    p, y = probabilities.numpy(), labels.numpy()
    predicted = p.argmax(1)
    top3 = [label in np.argsort(-row)[:3] for row, label in zip(p, y, strict=True)]
    assert measured["test"]["accuracy"] == pytest.approx((predicted == y).mean(), abs=1e-6)
    assert measured["test"]["top3_accuracy"] == pytest.approx(np.mean(top3), abs=1e-6)
    assert measured["test"]["calibration_error"] == pytest.approx(calibration_error(p, y, 15), abs=1e-5)
    assert measured["test"]["loss"] == 1.25
    for k, name in enumerate(names):
        hits = int(((predicted == k) & (y == k)).sum())
        precision = hits / max(int((predicted == k).sum()), 1)
        recall = hits / max(int((y == k).sum()), 1)
        f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
        assert measured["per_class"][name] == pytest.approx(
            {"precision": precision, "recall": recall, "f1": f1, "support": int((y == k).sum())}, abs=1e-6
        )


def test_certain_predictions_belong_to_the_last_bin() -> None:
    # 0.95 and 1 share the bin from 0.9 to 1 with an accuracy of one half; in separate bins the error would be 0.525.
    probabilities = torch.tensor([[0.95, 0.05], [1.0, 0.0]])
    measured = compute_metrics(probabilities, torch.tensor([0, 1]), 0.0, ["a", "b"], calibration_bins=10)
    assert measured["test"]["calibration_error"] == pytest.approx(abs(0.5 - 0.975), abs=1e-5)


def test_a_probability_rounded_above_one_is_not_treated_as_a_logit() -> None:
    exact = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.5, 0.3]])
    above = exact.clone()
    above[0, 0] = 1.0000002
    labels, names = torch.tensor([0, 1]), ["a", "b", "c"]
    assert compute_metrics(above, labels, 0.0, names, 15) == compute_metrics(exact, labels, 0.0, names, 15)


def test_a_class_that_is_missing_counts_zero_without_warning() -> None:
    probabilities = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured = compute_metrics(probabilities, torch.tensor([0, 0]), 0.1, ["a", "b", "c"], calibration_bins=15)
    assert measured["per_class"]["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert measured["test"]["accuracy"] == 1.0


def test_two_classes_have_a_full_top3() -> None:
    probabilities, labels = random_predictions(50, 2)
    assert compute_metrics(probabilities, labels, 0.5, ["cat", "dog"], 15)["test"]["top3_accuracy"] == 1.0


def monitored(monitor: str) -> dict[str, Any]:
    return METADATA | {"recipe": {"monitor": monitor}}


def test_the_metrics_survive_json() -> None:
    probabilities, labels = random_predictions(137, 3)
    measured = compute_metrics(probabilities, labels, 1 / 3, ["cat", "dog", "ship"], 15)
    assert json.loads(json.dumps(measured)) == measured
    assert measured["test"]["loss"] == 0.333333
    assert all(type(value) is float for value in measured["test"].values())


@pytest.mark.parametrize(
    ("checkpoint", "monitor", "expected"),
    [
        ("last", MONITOR, {"val": {"accuracy": 0.4}}),
        ("best", MONITOR, {"val": {"accuracy": 0.45}}),
        ("best", "val/loss", {"val": {"loss": 1.4}}),
    ],
)
def test_the_monitor_is_that_of_the_evaluated_epoch(
    checkpoint: str, monitor: str, expected: dict[str, dict[str, float]]
) -> None:
    assert training_metrics(HISTORY, monitored(monitor), checkpoint) == expected | {
        "train": {"epochs": 3, "seconds": 67.4, "images_per_second": 40.1}
    }


def test_a_monitor_of_the_training_split_stands_beside_its_time() -> None:
    stopped = "epoch 3 of 9: a reason"
    train = training_metrics(HISTORY, monitored("train/loss") | {"stopped": stopped}, "last")["train"]
    assert train == {"loss": 1.0, "epochs": 3, "seconds": 67.4, "images_per_second": 40.1, "stopped": stopped}


def test_without_validation_the_monitor_is_left_out() -> None:
    unmeasured = HISTORY.assign(**{MONITOR: [0.25, 0.45, np.nan]})
    for history in (HISTORY.drop(columns=MONITOR), unmeasured):
        assert list(training_metrics(history, monitored(MONITOR), "last")) == ["train"]


@pytest.mark.parametrize(
    ("probabilities", "labels", "loss", "classes", "message"),
    [
        (torch.rand(4, 3), torch.zeros(4), 0.0, ["a", "b"], r"\[N, 2\]"),
        (torch.rand(4, 2), torch.zeros(3), 0.0, ["a", "b"], r"\[4\]"),
        (torch.rand(0, 2), torch.zeros(0), 0.0, ["a", "b"], "N > 0"),
        (torch.rand(4, 2), torch.full((4,), 2), 0.0, ["a", "b"], "0 to 1"),
        (torch.randn(4, 2) * 9, torch.zeros(4), 0.0, ["a", "b"], "Probabilities must be in"),
        (torch.full((4, 2), torch.nan), torch.zeros(4), 0.0, ["a", "b"], "Probabilities must be in"),
        (torch.rand(4, 1), torch.zeros(4), 0.0, ["a"], "two classes"),
        (torch.rand(4, 2), torch.zeros(4), float("nan"), ["a", "b"], "finite"),
    ],
)
def test_invalid_arguments_are_rejected(
    probabilities: torch.Tensor, labels: torch.Tensor, loss: float, classes: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compute_metrics(probabilities, labels, loss, classes, 15)


def test_names_that_a_user_cannot_choose_are_those_of_the_metrics_that_are_always_measured() -> None:
    probabilities, labels = random_predictions(50, 2)
    measured = compute_metrics(probabilities, labels, 0.5, ["cat", "dog"], 15)["test"]
    assert {*measured} == {*BUILT_IN_METRICS} == {*BUILT_IN_NAMES}


def test_a_metric_that_is_not_finite_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    values = {"f1_macro": 0.12345678, "auroc": float("nan"), "ratio": float("inf")}
    assert finite_metrics(values) == {"f1_macro": 0.123457}
    assert [record.message.partition(",")[0] for record in caplog.records] == [
        "metrics.auroc is nan on these images",
        "metrics.ratio is inf on these images",
    ]
