"""`report.py results-table` prints the evaluated runs of each experiment over its seeds as a Markdown table."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from cifar_pipeline.config.compose import ExperimentRecipe, compose_config, stage_config
from cifar_pipeline.reporting.summary import experiments_table
from cifar_pipeline.tracking.runs import EvaluatedRun, training_run
from helpers.config_project import FAST, Project, run
from report import report


@pytest.fixture
def database(project: Project, monkeypatch: pytest.MonkeyPatch, empty_database: Path) -> Iterator[None]:
    """Make an empty MLflow database in the project, which has one more recipe."""
    project.write("conf/experiment/fast.yaml", FAST)
    shutil.copy(empty_database, project.folder)
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    before = mlflow.get_tracking_uri()
    yield
    mlflow.set_tracking_uri(before)


def log_evaluated_run(fingerprint: str, accuracy: float, dataset: str, *overrides: str) -> None:
    config = stage_config(compose_config(list(overrides)), "train")
    data = {
        "name": dataset,
        "hash": "0" * 64,
        "source": "somewhere",
        "shape": (8, 8, 1),
        "sizes": {"train": 9},
        "classes": 2,
    }
    with training_run(fingerprint, fingerprint, config, data) as opened:
        opened.tag({"device": "cpu, 2 threads", "processor": "abacus"})
        opened.log_metrics({"test/accuracy": accuracy})


def test_the_table_has_a_row_for_each_experiment_with_the_accuracy_over_its_seeds(database: None) -> None:
    log_evaluated_run("a", 0.62, "cifar10", "experiment=fast", "seed=0")
    log_evaluated_run("b", 0.64, "cifar10", "experiment=fast", "seed=1")
    log_evaluated_run("c", 0.7, "cifar10", "experiment=fast", "seed=0", "data.val_fraction=0")
    log_evaluated_run("d", 0.9, "cifar10", "experiment=fast", "trainer.max_epochs=77")  # not the experiment's value
    log_evaluated_run("e", 0.9, "digits", "experiment=fast")
    ended = run(report, "results-table")
    assert not ended.code, ended.err
    heading, rule, *rows = ended.out.splitlines()
    columns = heading.count("|")
    assert heading.startswith("| ") and set(rule) == set("|- ")
    assert len(rows) == 2 and all(row.count("|") == columns for row in (rule, *rows))
    assert rows[0].startswith("| `dvc exp run -S experiment=fast` |") and "abacus, cpu, 2 threads" in rows[0]
    assert "63.00 ± 1.41 % (0: 62.00, 1: 64.00)" in rows[0]
    assert "-S ++overrides.data.val_fraction=0`, " in rows[1] and "70.00 % (0: 70.00)" in rows[1]


def test_without_evaluated_runs_there_is_no_table(database: None) -> None:
    run(report, "results-table").assert_refused("No experiment of conf/experiment/ was evaluated")


def target_cell(*accuracies: float, target: float | None) -> str:
    runs = [EvaluatedRun(seed, accuracy, 90.0, "abacus", "abc", {}) for seed, accuracy in enumerate(accuracies)]
    table = experiments_table([(ExperimentRecipe("fast", (), {}, target), runs)])
    return table.splitlines()[-1].split(" | ")[2].strip()


def test_a_missed_target_is_marked() -> None:
    assert target_cell(0.93, 0.941, target=94.0) == ">= 94 %: **missed**"
    assert target_cell(0.939, 0.941, target=94.0) == ">= 94 %: reached"
    assert target_cell(0.939, target=None) == ""
