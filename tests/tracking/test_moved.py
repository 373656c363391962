"""A moved or copied project finds its runs and models, and writes into its own folder."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from cifar_pipeline.config import compose
from cifar_pipeline.tracking.champion import PromotionPolicy, from_run
from cifar_pipeline.tracking.client import PATH_COLUMNS, connect, previous_root
from cifar_pipeline.tracking.model_uri import resolve_model
from cifar_pipeline.tracking.registry import promote
from cifar_pipeline.tracking.runs import training_run
from helpers.data_facts import data_facts
from helpers.source_tree import EXPERIMENT

POLICY = PromotionPolicy("digits", "champion", 0.0)
CHAMPION = "models:/digits@champion"


@pytest.fixture
def original(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a project with a registered model and change to it."""
    root = tmp_path / "das erste für alle: 100%20?"
    root.mkdir()
    shutil.copy(empty_database, root)
    enter(monkeypatch, root)
    before = mlflow.get_tracking_uri()
    promote(from_run(train(0.5), "last"), POLICY, False)
    yield root
    mlflow.set_tracking_uri(before)


def enter(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Change to this folder, without the variables that name another workspace or MLflow's database."""
    for variable in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(compose, "_experiment_name", EXPERIMENT)  # There is no conf/.
    monkeypatch.chdir(root)


def train(accuracy: float) -> str:
    """Log a finished training in the working directory; return the id of its run."""
    model = Path("result", "last")
    model.mkdir(parents=True, exist_ok=True)
    (model / "MLmodel").write_text(f"metadata: {accuracy}\n")
    (model.parent / "metadata.json").write_text(json.dumps({"classes": ["0"]}))
    dataset = data_facts()
    with training_run(
        f"with {accuracy}", "a-training", {"monitor": "val/accuracy", "mode": "max"}, dataset, rerun=False
    ) as run:
        run.log_metrics({"val/accuracy": accuracy}, 1)
        run.log_result(model.parent, {})
    return run.id


def content_of(address: str) -> str:
    with resolve_model(address, "", "last") as folder:
        return (folder / "MLmodel").read_text()


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def paths_in_database(root: Path) -> list[str]:
    """Return all paths in the database."""
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        return [
            value
            for table, columns, rows in PATH_COLUMNS
            for column in columns
            for (value,) in database.execute(f"SELECT {column} FROM {table} {rows}")
            if value
        ]


def test_a_moved_project_finds_its_model_and_writes_into_its_new_folder(
    original: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = original.rename(original.parent / "umbenannt & new")
    enter(monkeypatch, moved)
    assert content_of(CHAMPION) == "metadata: 0.5\n"
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and f"This project was in {original} before" in printed and str(moved) in printed
    run = train(0.6)
    promote(from_run(run, "last"), POLICY, False)
    assert content_of(CHAMPION) == "metadata: 0.6\n" and content_of("models:/digits/1") == "metadata: 0.5\n"
    assert not original.exists()
    assert (moved / "mlruns" / run / "artifacts" / "metadata.json").is_file()
    assert "before" not in capsys.readouterr().err
    assert not [path for path in paths_in_database(moved) if original.as_uri() in path or str(original) in path]
    # MLflow's own client finds the files too.
    client = MlflowClient(f"sqlite:///{moved / 'mlflow.db'}")
    assert Path(client.download_artifacts(run, "metadata.json")).is_file()


def test_a_copy_and_its_original_are_independent(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = original.parent / "copy"
    shutil.copytree(original, copy)
    before = files(original)
    enter(monkeypatch, copy)
    promote(from_run(train(0.7), "last"), POLICY, False)
    assert content_of(CHAMPION) == "metadata: 0.7\n"
    assert files(original) == before
    enter(monkeypatch, original)
    assert content_of(CHAMPION) == "metadata: 0.5\n"
    shutil.rmtree(original / "mlruns")
    enter(monkeypatch, copy)
    assert content_of("models:/digits/1") == "metadata: 0.5\n"


def test_files_that_were_not_moved_are_still_found(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = original.parent / "database only"
    copy.mkdir()
    with (
        closing(sqlite3.connect(original / "mlflow.db")) as database,
        closing(sqlite3.connect(copy / "mlflow.db")) as new,
    ):
        database.backup(new)
    before = files(original / "mlruns")
    enter(monkeypatch, copy)
    assert content_of("models:/digits/1") == "metadata: 0.5\n"
    run = train(0.6)
    assert (copy / "mlruns" / run / "artifacts" / "metadata.json").is_file()
    assert files(original / "mlruns") == before


def test_a_store_outside_the_workspace_is_not_changed(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = original.parent / "other"
    other.mkdir()
    before = paths_in_database(original)
    enter(monkeypatch, other)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{original / 'mlflow.db'}")
    connect()
    assert paths_in_database(original) == before


@pytest.mark.parametrize("location", ["s3://bucket/mlruns", "mlflow-artifacts:/1", "file:///other/runs", "mlruns", ""])
def test_a_location_that_the_user_chose_is_not_changed(location: str) -> None:
    assert previous_root(location, Path("/here")) is None
