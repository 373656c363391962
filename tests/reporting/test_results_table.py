"""`make results`: a recipe's trainings over its seeds, out of MLflow's database, into both READMEs."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from results import results

from cifar_pipeline.config.compose import compose_config, result_config
from cifar_pipeline.reporting.summary import BEGIN, END, Result, write_results
from cifar_pipeline.tracking.runs import EvaluatedRun, training_run
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import Project, run

PAGE = f"# Title\n\n{BEGIN}\nold\n{END}\n\nafter\n"


@pytest.fixture
def database(project: Project, monkeypatch: pytest.MonkeyPatch, empty_database: Path) -> Iterator[Path]:
    """An MLflow database of the project's own, and two pages with a place for the table."""
    shutil.copy(empty_database, project.folder)
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    before = mlflow.get_tracking_uri()
    for page in ("README.md", "README.zh-CN.md"):
        project.write(page, PAGE)
    yield project.folder
    mlflow.set_tracking_uri(before)


def measured(fingerprint: str, accuracy: float, dataset: str, *overrides: str) -> None:
    config = result_config(compose_config(list(overrides)))
    data = {"name": dataset, "hash": "0" * 64, "source": "somebody"}
    with training_run(fingerprint, fingerprint, config, data) as opened:
        opened.tag({"device": "cpu, 2 threads", "processor": "abacus"})
        opened.log_metrics({"test/accuracy": accuracy})


def test_make_results_writes_both_readmes(database: Path) -> None:
    measured("a", 0.62, "cifar10", "experiment=quick", "seed=0")
    measured("b", 0.64, "cifar10", "experiment=quick", "seed=1")
    measured("c", 0.7, "cifar10", "experiment=quick", "seed=0", "data.val_fraction=0")
    measured("d", 0.9, "cifar10", "experiment=quick", "trainer.max_epochs=77")  # no recipe as it stands
    measured("e", 0.9, "digits", "experiment=quick")
    ended = run(results)
    assert ended.code in (0, None), ended.err
    for page in ("README.md", "README.zh-CN.md"):
        text = (database / page).read_text(encoding="utf-8")
        table = text.partition(BEGIN)[2].partition(END)[0]
        assert "old" not in text and text.startswith("# Title") and text.endswith(f"{END}\n\nafter\n")
        _, _, _, _, *rows, _, _ = table.split("\n")
        assert len(rows) == 2 and "abacus, cpu, 2 threads" in rows[0]
        assert "63.00 ± 1.41 % (0: 62.00, 1: 64.00)" in rows[0] and "`dvc exp run -S experiment=quick`" in rows[0]
        assert "-S ++overrides.data.val_fraction=0`, " in rows[1] and "70.00 % (0: 70.00)" in rows[1]


def test_what_another_machine_has_measured_stays(database: Path) -> None:
    elsewhere = "| `dvc exp run -S experiment=quick` | 64.20 % (0: 64.20) |  | 8.0 s | a fast GPU | abc |"
    here = elsewhere.replace("a fast GPU", "abacus, cpu, 2 threads").replace("64.20", "10.00")
    for page in ("README.md", "README.zh-CN.md"):
        (database / page).write_text(PAGE.replace("old", f"| recipe |\n| --- |\n{elsewhere}\n{here}"), encoding="utf-8")
    measured("a", 0.62, "cifar10", "experiment=quick", "seed=0")
    assert "rows of other machines that stay: 1" in run(results).out
    for page in ("README.md", "README.zh-CN.md"):
        text = (database / page).read_text(encoding="utf-8")
        assert elsewhere in text and "10.00" not in text and text.index("62.00 %") < text.index("64.20 %")


def test_nothing_measured_is_refused_and_writes_nothing(database: Path) -> None:
    ended = run(results)
    assert ended.code == 2 and "No experiment of conf/experiment/ has been measured" in ended.err
    assert (database / "README.md").read_text(encoding="utf-8") == PAGE


def result(*accuracies: float, target: float | None) -> Result:
    trainings = [EvaluatedRun(seed, accuracy, 90.0, "abacus", "abc", {}) for seed, accuracy in enumerate(accuracies)]
    return Result("command", True, target, trainings)


def test_a_target_that_is_missed_stands_as_it_is() -> None:
    assert result(0.93, 0.941, target=94.0).cells("en")[2] == ">= 94 %: **missed**"
    assert result(0.939, 0.941, target=94.0).cells("en")[2] == ">= 94 %: reached"
    assert result(0.939, target=None).cells("en")[2] == ""


def test_a_page_without_a_place_for_the_table_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing here")
    with pytest.raises(UserError, match="no place for the table"):
        write_results([], page, "en")
