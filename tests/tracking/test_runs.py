"""One run per training: opened once, continued by whoever comes next, ended as what really happened."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from cifar_pipeline.config import source_files
from cifar_pipeline.tracking.client import connect
from cifar_pipeline.tracking.runs import MAX_PARAM_LENGTH, finished_run, resume_run, run_name, training_run
from cifar_pipeline.tracking.trial import Trial
from cifar_pipeline.utils.errors import UserError

CONFIG = {"optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}, "trainer": {"clip": None}, "seed": 0}
DATA = {"name": "digits", "hash": "0123456789abcdef" * 4, "source": "scikit-learn"}


@pytest.fixture
def client(workspace) -> MlflowClient:
    return connect()[0]


def opened(fingerprint, rerun="", config=CONFIG):
    return training_run(fingerprint, "sgd-mse-0", config, DATA, rerun)


def runs_of(client: MlflowClient, fingerprint: str):
    return client.search_runs([connect()[1]], f"tags.fingerprint = '{fingerprint}'")


def status(client: MlflowClient, run_id: str) -> str:
    return client.get_run(run_id).info.status


def test_a_run_holds_the_configuration_whole_and_as_parameters(client, tmp_path):
    with opened("whole") as run:
        assert status(client, run.id) == "RUNNING"
    logged = client.get_run(run.id)
    assert logged.info.status == "FINISHED" and logged.info.run_name == "sgd-mse-0"
    assert logged.data.params == {
        "optimizer.lr": "0.1",
        "optimizer.betas": "[0.9, 0.99]",
        "trainer.clip": "None",
        "seed": "0",
    }
    assert logged.data.tags["dataset"] == "digits"
    (used,) = logged.inputs.dataset_inputs
    assert used.dataset.name == "digits" and DATA["hash"].startswith(used.dataset.digest)
    path = client.download_artifacts(run.id, "config.yaml", str(tmp_path))
    assert yaml.safe_load(Path(path).read_text()) == CONFIG


def test_a_run_tells_the_variables_that_change_numbers(client, monkeypatch):
    monkeypatch.setattr(source_files, "_initial_environment", lambda: {"NVIDIA_TF32_OVERRIDE": "1", "HOME": "/home/me"})
    with opened("variables") as run:
        pass
    tags = client.get_run(run.id).data.tags
    assert {key: value for key, value in tags.items() if key.startswith("env.")} == {"env.NVIDIA_TF32_OVERRIDE": "1"}


def test_a_long_value_is_shortened_with_a_notice_and_whole_in_the_file(client, tmp_path):
    value = "x" * (MAX_PARAM_LENGTH + 1)
    with opened("long", config={"augmentation": {"policy": value}, "exact": "y" * MAX_PARAM_LENGTH}) as run:
        pass
    parameters = client.get_run(run.id).data.params
    assert parameters["exact"] == "y" * MAX_PARAM_LENGTH
    shortened = parameters["augmentation.policy"]
    assert len(shortened) == MAX_PARAM_LENGTH and shortened.endswith(" ... (the whole value: artifact config.yaml)")
    path = client.download_artifacts(run.id, "config.yaml", str(tmp_path))
    assert yaml.safe_load(Path(path).read_text())["augmentation"]["policy"] == value


@pytest.mark.parametrize(
    ("exception", "expected"),
    [
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(143), "KILLED"),
        (ValueError("out of memory"), "FAILED"),
        (None, "FINISHED"),
    ],
)
def test_a_run_ends_as_what_happened(client, exception, expected):
    fingerprint = f"ends-{expected}-{type(exception).__name__}"
    with pytest.raises(type(exception)) if exception else nullcontext(), opened(fingerprint) as run:
        if exception:
            raise exception
    assert status(client, run.id) == expected


def test_a_run_whose_process_died_is_continued_and_not_doubled(client):
    with opened("died") as first:
        for epoch in (1, 2):
            first.log_metrics({"train/loss": 1 / epoch}, epoch)
    client.update_run(first.id, status="RUNNING")  # as a process that was killed leaves it
    with opened("died") as second:
        assert second.id == first.id
        assert second.logged_epochs == 2
    assert status(client, first.id) == "FINISHED"
    assert len(runs_of(client, "died")) == 1


def test_the_run_of_a_training_whose_process_died_is_ended_by_the_next_training(client):
    with opened("left") as left:
        pass
    client.update_run(left.id, status="RUNNING")  # as a process that was killed leaves it
    with opened("next"):
        assert status(client, left.id) == "KILLED"


def test_a_training_that_ends_while_another_looks_is_not_taken_for_killed(client, monkeypatch):
    with opened("ending") as ending:
        pass
    client.update_run(ending.id, status="RUNNING")

    def is_held(fingerprint: str) -> bool:
        if fingerprint == "ending":
            client.set_terminated(ending.id, "FINISHED")  # which it does before it lets go of its folder
        return False

    monkeypatch.setattr("cifar_pipeline.tracking.stale_runs.is_held", is_held)
    with opened("looking"):
        assert status(client, ending.id) == "FINISHED"


def test_only_rerun_opens_another_and_that_is_the_one_continued(client):
    with opened("again") as first:
        pass
    with pytest.raises(KeyboardInterrupt), opened("again", rerun="a") as stopped:
        raise KeyboardInterrupt
    with opened("again") as taken:  # the finished one's result, for which the rerun's run is not the place
        pass
    assert taken.id == first.id and status(client, stopped.id) == "KILLED"
    with opened("again", rerun="a") as second:
        assert second.logged_epochs == 0
    assert second.id == stopped.id
    assert second.id != first.id
    with opened("again") as third:
        pass
    assert third.id == second.id
    assert len(runs_of(client, "again")) == 2


def test_a_killed_run_that_a_rerun_leaves_alone_is_ended(client):
    with opened("alone") as first:
        pass
    client.update_run(first.id, status="RUNNING")  # as a process that was killed leaves it
    with opened("alone", rerun="a") as second:
        assert status(client, first.id) == "KILLED"
    assert second.id != first.id


def test_a_rerun_that_has_killed_its_process_twice_is_passed_over_once_and_then_tried_in_another_run(client):
    parent = client.create_run(connect()[1]).info.run_id
    point = Trial(parent, 0, (), (), rerun="s")

    def again():
        return training_run("deadly", "sgd-mse-0", CONFIG, DATA, "a", point)

    for _ in range(2):
        with again() as run:
            pass
        client.update_run(run.id, status="RUNNING")  # as a process that was killed leaves it
    with pytest.raises(UserError, match="the next start with rerun=true tries again"), again():
        pass
    assert status(client, run.id) == "FAILED" and finished_run("deadly", "s") is None
    with again() as other:
        pass
    assert other.id != run.id and len(runs_of(client, "deadly")) == 2
    found = finished_run("deadly", "s")
    assert found is not None and found.info.run_id == other.id


def test_another_identity_is_another_run(client):
    with opened("one") as one, opened("two") as two:
        assert one.id != two.id


def test_metrics_keep_their_names_and_steps(client):
    with opened("metrics") as run:
        run.log_metrics({"per_class/a b/recall": 0.5, "test/accuracy": 1.0})
        run.log_metrics({"test/accuracy": 0.25}, step=3)
    history = client.get_metric_history(run.id, "test/accuracy")
    assert [(metric.step, metric.value) for metric in history] == [(0, 1.0), (3, 0.25)]
    assert client.get_run(run.id).data.metrics == {"per_class/a b/recall": 0.5, "test/accuracy": 0.25}


def test_results_become_models_and_files_once(client, tmp_path):
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "MLmodel").write_text("flavors: {}\n")
    (tmp_path / "metadata.json").write_text("{}")
    with opened("result") as run:
        run.log_result(tmp_path, {"device": "cpu"})
        run.log_result(tmp_path, {"device": "cpu"})
    logged = client.get_run(run.id)
    (output,) = logged.outputs.model_outputs
    assert client.get_logged_model(output.model_id).name == "last"
    assert [artifact.path for artifact in client.list_artifacts(run.id) if artifact.path.endswith(".json")] == [
        "metadata.json"
    ]
    assert logged.data.tags["device"] == "cpu"


def test_results_that_come_later_go_to_the_run_that_was_there(client, capsys):
    with opened("later") as run:
        pass
    with resume_run(run.id, "sgd-mse-0") as later:
        later.log_metrics({"test/accuracy": 0.5})
    assert later.id == run.id and status(client, run.id) == "FINISHED"
    assert capsys.readouterr().out == ""


def test_results_go_to_a_new_run_where_theirs_is_not_in_this_database(client, capsys):
    with resume_run("0" * 32, "adam-mse-1") as run:
        pass
    assert "is not in this MLflow database: a new one, adam-mse-1, takes the results" in capsys.readouterr().out
    assert client.get_run(run.id).info.run_name == "adam-mse-1" and status(client, run.id) == "FINISHED"


@pytest.mark.parametrize(
    ("experiment", "optimizer", "name"),
    [
        ("tutorial", "adam", "adam-mse-0"),
        ("null", "adam", "adam-mse-0"),
        ("debug", "sgd", "debug-sgd-mse-0"),
        ("quick", "quick", "quick-mse-0"),
    ],
)
def test_a_name_says_the_choices_and_another_recipe_than_the_tutorials(experiment, optimizer, name):
    assert run_name({"experiment": experiment, "optimizer": optimizer, "loss": "mse", "model": "lenet"}, 0) == name
