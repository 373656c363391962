"""Keys of conf/mlflow/ and MLflow's own variables: experiment, tags, description, a foreign run, a login."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from cifar_pipeline.config import compose
from cifar_pipeline.stages.evaluate import evaluate
from cifar_pipeline.stages.train import train
from cifar_pipeline.tracking.client import connect
from helpers.config_project import Ended, Project
from helpers.servers import fixed_response_server
from helpers.source_tree import EXPERIMENT

QUICK = ("data=digits", "trainer.batch_size=9", "trainer.max_epochs=1", "runtime.accelerator=cpu", "runtime.threads=1")


def trained(project: Project, *more: str) -> Ended:
    ended = project.start(train, *QUICK, *more)
    assert ended.code == 0, ended.err
    return ended


def client_of(project: Project) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")


def runs(project: Project) -> dict[str, list[Run]]:
    """Return the runs of each experiment that has some."""
    client = client_of(project)
    found = {each.name: list(client.search_runs([each.experiment_id])) for each in client.search_experiments()}
    return {name: entries for name, entries in found.items() if entries}


def test_the_experiment_is_the_variables_unless_the_command_line_or_params_name_another(
    ready: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of the variable")
    trained(ready)
    assert set(runs(ready)) == {"of the variable"}
    trained(ready, "mlflow.experiment_name=typed")
    assert set(runs(ready)) == {"of the variable", "typed"}
    ready.edit("params.yaml", "overrides: {}", "overrides: {mlflow: {experiment_name: of params}}")
    trained(ready)
    assert set(runs(ready)) == {"of the variable", "typed", "of params"}


def test_a_command_without_stage_uses_the_same_experiment(ready: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "_experiment_name", "")  # as in a new process
    ready.edit("params.yaml", "overrides: {}", "overrides: {mlflow: {experiment_name: of params}}")
    trained(ready)
    (trained_in,) = {entry.info.experiment_id for entry in runs(ready)["of params"]}
    assert connect()[1] == trained_in


def test_an_experiment_made_by_someone_else_keeps_its_artifact_location(ready: Project, tmp_path: Path) -> None:
    location = (tmp_path / "elsewhere").as_uri()
    client_of(ready).create_experiment("theirs", artifact_location=location)
    trained(ready, "mlflow.experiment_name=theirs")
    (entry,) = runs(ready)["theirs"]
    assert entry.info.artifact_uri.startswith(location) and (tmp_path / "elsewhere" / entry.info.run_id).is_dir()


def test_a_deleted_experiment_is_refused(ready: Project) -> None:
    client = client_of(ready)
    experiment = client.create_experiment("gone")
    client.delete_experiment(experiment)
    ended = ready.start(train, *QUICK, "mlflow.experiment_name=gone")
    assert ended.code == 2 and "The experiment gone was deleted from this MLflow store" in ended.err
    store = f"MLFLOW_TRACKING_URI=sqlite:///{ready.folder}/mlflow.db"
    assert f"`{store} mlflow experiments restore --experiment-id {experiment}`" in ended.err


def test_the_id_of_another_experiment_is_refused_before_an_experiment_is_made(
    ready: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = client_of(ready).create_experiment("other")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", other)
    ended = ready.start(train, *QUICK)
    assert ended.code == 2 and f"MLFLOW_EXPERIMENT_ID is {other}" in ended.err and "epoch 1/" not in ended.err
    assert client_of(ready).get_experiment_by_name(EXPERIMENT) is None
    trained(ready, "mlflow.experiment_name=other")


def test_a_foreign_run_is_refused_and_the_trainings_own_is_not(ready: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(ready)
    foreign = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", foreign)
    ended = ready.start(train, *QUICK)
    assert ended.code == 2 and ended.err.splitlines() == [ended.err.strip()]
    assert f"MLFLOW_RUN_ID names the run {foreign}" in ended.err
    assert set(runs(ready)) == {"Default"} and not (ready.folder / "models").exists()

    monkeypatch.delenv("MLFLOW_RUN_ID")
    trained(ready)
    (own,) = runs(ready)[EXPERIMENT]
    monkeypatch.setenv("MLFLOW_RUN_ID", own.info.run_id)
    assert "has already finished" in trained(ready).out
    ended = ready.start(train, *QUICK, "rerun=true")
    assert ended.code == 2 and f"MLFLOW_RUN_ID names the run {own.info.run_id}" in ended.err
    assert ready.start(evaluate, "data=digits").code == 0
    monkeypatch.setenv("MLFLOW_RUN_ID", foreign)
    before = (ready.folder / "reports" / "metrics.json").stat().st_mtime_ns
    assert foreign in ready.start(evaluate, "data=digits").err
    assert (ready.folder / "reports" / "metrics.json").stat().st_mtime_ns == before
    assert [entry.info.run_id for entry in runs(ready)[EXPERIMENT]] == [own.info.run_id]


def test_tags_and_description_are_set_also_on_a_finished_training(
    ready: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVICE_PASSWORD", "correct-horse")
    trained(ready, "mlflow.tags={team: vision, ticket: 17, tuned: true, note: with correct-horse}")
    (entry,) = runs(ready)[EXPERIMENT]
    expected = {"team": "vision", "ticket": "17", "tuned": "true", "note": "with ***"}
    assert entry.data.tags.items() >= expected.items() and "mlflow.note.content" not in entry.data.tags
    ended = trained(ready, "mlflow.tags.team=speech", "mlflow.description='**Baseline**'")
    assert "has already finished" in ended.out
    (entry,) = runs(ready)[EXPERIMENT]
    assert (entry.data.tags["team"], entry.data.tags["ticket"]) == ("speech", "17")
    assert entry.data.tags["mlflow.note.content"] == "**Baseline**"


def test_system_metrics_are_logged_where_they_are_switched_on(ready: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.02")
    trained(ready)
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    trained(ready, "seed=1")
    measured = {
        entry.data.params["seed"]: "system/cpu_utilization_percentage" in entry.data.metrics
        for entry in runs(ready)[EXPERIMENT]
    }
    assert measured == {"0": False, "1": True}


@pytest.fixture
def server() -> Iterator[Any]:
    with fixed_response_server() as server:
        yield server


@pytest.mark.parametrize(
    ("code", "login", "sentence"),
    [(401, "", "requires a login"), (401, "me", "rejects the login"), (403, "me", "denies access")],
)
def test_a_server_that_does_not_let_in_is_reported_before_the_training(
    ready: Project, monkeypatch: pytest.MonkeyPatch, server: Any, code: int, login: str, sentence: str
) -> None:
    server.reply = code, b"no"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", login)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", login and "a-wrong-password")
    ended = ready.start(train, *QUICK)
    assert ended.code == 1 and sentence in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err and "epoch 1/" not in ended.err and "a-wrong-password" not in ended.err
