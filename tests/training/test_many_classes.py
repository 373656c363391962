"""`evaluate` with many classes shows some of them, and keeps the numbers where a figure fails."""

import csv
from pathlib import Path

import pytest

from cifar_pipeline.reporting.evaluation import Evaluation
from cifar_pipeline.stages.evaluate import evaluate
from cifar_pipeline.stages.train import train
from cifar_pipeline.tracking.runs import TrainingRun
from helpers.config_project import Project

SMALL = ("data=digits", "optimizer=adam", "trainer.batch_size=9", "runtime.threads=1", "runtime.accelerator=cpu")
# The ten digits are many, and three of them are confused.
FEW_SHOWN = ("evaluation.many_classes=10", "evaluation.num_confused_pairs=2", "evaluation.num_listed_classes=3")


def column(path: Path, name: str) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return [row[name] for row in csv.DictReader(file)]


@pytest.mark.long
def test_some_classes_are_shown_and_a_figure_that_fails_costs_nothing_else(
    ready: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = ready.folder / "reports"
    assert ready.start(train, *SMALL, "trainer.max_epochs=1").code == 0
    few = ready.start(evaluate, *SMALL, *FEW_SHOWN)
    assert few.code == 0, few.err
    numbers, figure = (reports / "metrics.json").read_bytes(), (reports / "confusion.png").read_bytes()
    actual, predicted = (column(reports / "confusion.csv", name) for name in ("actual", "predicted"))
    assert 2 <= len({*actual, *predicted} - {"(other classes)"}) <= 4
    assert len(column(reports / "per_class.csv", "class")) == 10
    page = (reports / "report.html").read_text(encoding="utf-8")
    assert "Lowest F1" in page and "Highest F1" in page and "classes out of 10" in page

    def fail(_: Evaluation) -> None:
        raise MemoryError("2.4 GB")

    for name in ("metrics.json", "report.html"):
        (reports / name).unlink()
    monkeypatch.setattr(Evaluation, "confusion_figure", fail)
    uploaded: list[str] = []
    monkeypatch.setattr(TrainingRun, "log_files", lambda _, paths: uploaded.extend(path.name for path in paths))
    failed = ready.start(evaluate, *SMALL)
    assert failed.code == 1 and "reports/confusion.png could not be made; the numbers and all else are in" in failed.err
    assert (reports / "metrics.json").read_bytes() == numbers
    assert "Metrics per class" in (reports / "report.html").read_text(encoding="utf-8")
    # Neither the old figure nor none.
    assert (reports / "confusion.png").read_bytes() not in (figure, b"")
    assert {"metrics.json", "per_class.csv", "report.html", "confusion.png", "filters.png"} <= set(uploaded)
