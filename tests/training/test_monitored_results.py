"""What was monitored reaches the results: chosen metrics on the test split, the stop, and the champion."""

import csv
import json
import os

import pytest
from mlflow import MlflowClient
from sklearn.metrics import f1_score

from cifar_pipeline.reporting.metric_names import BUILT_IN_METRICS
from cifar_pipeline.stages.evaluate import evaluate
from cifar_pipeline.stages.train import train
from cifar_pipeline.training.metrics import BUILT_IN_NAMES
from helpers.config_project import Project, run
from registry import registry
from report import report

SMALL = ("data=digits", "optimizer=adam", "trainer.batch_size=9", "runtime.threads=1", "runtime.accelerator=cpu")
BY_F1 = ("metrics=[f1_macro]", "monitor=val/f1_macro", "evaluation=best")
# Which no epoch after the first reaches.
STOPPING = ("callbacks=[early_stopping]", "callbacks.early_stopping.patience=2", "callbacks.early_stopping.min_delta=9")


def history(project: Project, metric: str) -> list[float]:
    with (project.folder / "models" / "history.csv").open(newline="") as file:
        return [float(row[metric]) for row in csv.DictReader(file)]


@pytest.fixture
def by_f1(ready: Project) -> Project:
    """A training monitored by F1 that stops after three epochs, evaluated."""
    for stage in (train, evaluate):
        ended = ready.start(stage, *SMALL, *BY_F1, *STOPPING, "trainer.max_epochs=9")
        assert ended.code == 0, ended.err
    return ready


def test_the_metric_and_the_stop_are_in_all_results_and_decide_the_champion(
    by_f1: Project,
) -> None:
    reports, stopped = by_f1.folder / "reports", "epoch 3 of 9: val/f1_macro has not improved for 2 epochs"
    metrics = json.loads((reports / "metrics.json").read_text())
    with (reports / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels, predictions = ([row[name] for row in rows] for name in ("label", "prediction"))
    # The classes that occur in neither have no F1.
    expected = f1_score(labels, predictions, average="macro", labels=sorted({*labels, *predictions}))
    assert metrics["test"]["f1_macro"] == pytest.approx(expected, abs=1e-6)
    assert metrics["train"]["stopped"] == stopped
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    logged = client.get_run(json.loads((by_f1.folder / "models" / "run.json").read_text())["id"])
    assert logged.data.metrics["test/f1_macro"] == metrics["test"]["f1_macro"]
    assert logged.data.tags["stopped"] == stopped
    page = (reports / "report.html").read_text(encoding="utf-8")
    for text in (stopped, "val/f1_macro", "best validation F1 macro (epoch", "Validation F1 macro by epoch"):
        assert text in page
    summary = run(report, "summary").out
    assert f"F1 macro {metrics['test']['f1_macro']:.4f}" in summary and stopped in summary
    assert "val/f1_macro (max)" in summary

    best = max(history(by_f1, "val/f1_macro"))
    by_f1.edit("params.yaml", "evaluation: null", "evaluation: best")
    promoted = run(registry, "promote")
    assert f"val/f1_macro {best:.4f}) is the champion now" in promoted.out, promoted.err
    assert f"{best:.4f}" in run(registry, "list").out

    # Without them it is a training by accuracy, with the same numbers.
    by_f1.edit("params.yaml", "evaluation: best", "evaluation: null")
    for stage in (train, evaluate):
        assert by_f1.start(stage, *SMALL, "trainer.max_epochs=2").code == 0
    promoted = run(registry, "promote")
    assert "was chosen by val/f1_macro (mode=max) and this one by val/accuracy (mode=max)" in promoted.out
    assert json.loads((reports / "metrics.json").read_text())["test"].keys() == {*BUILT_IN_METRICS}
    assert "stopped" not in run(report, "summary").out


def test_the_names_of_built_in_metrics_are_those_of_the_results() -> None:
    assert sorted(BUILT_IN_NAMES) == sorted(BUILT_IN_METRICS)
