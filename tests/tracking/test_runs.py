"""One run per training: opened once, resumed by the next process, ended with its real status."""

import json
import signal
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import mlflow.data
import numpy as np
import pytest
import yaml
from mlflow import MlflowClient

from cifar_pipeline.config import source_files
from cifar_pipeline.tracking.client import connect, logged_epochs
from cifar_pipeline.tracking.runs import MAX_PARAM_LENGTH, finished_run, resume_run, run_name, training_run
from cifar_pipeline.tracking.trial import Trial, TrialPruned
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.process import Interrupted
from helpers.data_facts import data_facts

CONFIG = {"optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}, "trainer": {"clip": None}, "seed": 0}
DATA = data_facts("0123456789abcdef" * 4, source="scikit-learn")


@pytest.fixture
def client(workspace) -> MlflowClient:
    return connect()[0]


def open_run(fingerprint, rerun="", config=CONFIG):
    return training_run(fingerprint, "sgd-mse-0", config, DATA, rerun)


def runs_of(client: MlflowClient, fingerprint: str):
    return client.search_runs([connect()[1]], f"tags.fingerprint = '{fingerprint}'")


def status(client: MlflowClient, run_id: str) -> str:
    return client.get_run(run_id).info.status


def test_a_run_has_the_configuration_as_a_file_and_as_parameters(client, tmp_path):
    with open_run("complete") as run:
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
    assert yaml.safe_load(Path(path).read_text(encoding="utf-8")) == CONFIG


def test_a_run_is_tagged_with_the_environment_variables_that_change_numbers(client, monkeypatch):
    monkeypatch.setattr(source_files, "_initial_environment", lambda: {"NVIDIA_TF32_OVERRIDE": "1", "HOME": "/home/me"})
    with open_run("variables") as run:
        pass
    tags = client.get_run(run.id).data.tags
    assert {key: value for key, value in tags.items() if key.startswith("env.")} == {"env.NVIDIA_TF32_OVERRIDE": "1"}


def test_a_long_value_is_cut_with_a_notice_and_complete_in_the_file(client, tmp_path):
    value = "x" * (MAX_PARAM_LENGTH + 1)
    with open_run("long", config={"augmentation": {"policy": value}, "exact": "y" * MAX_PARAM_LENGTH}) as run:
        pass
    parameters = client.get_run(run.id).data.params
    assert parameters["exact"] == "y" * MAX_PARAM_LENGTH
    cut = parameters["augmentation.policy"]
    assert len(cut) == MAX_PARAM_LENGTH and cut.endswith(" ... (full value in the artifact config.yaml)")
    path = client.download_artifacts(run.id, "config.yaml", str(tmp_path))
    assert yaml.safe_load(Path(path).read_text(encoding="utf-8"))["augmentation"]["policy"] == value


def replaced(error: BaseException) -> BaseException:
    """Return the error of a library that failed while it cleaned up after another one."""
    try:
        try:
            raise error
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")
    except RuntimeError as library_error:
        return library_error


@pytest.mark.parametrize(
    ("exception", "expected"),
    [
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(143), "KILLED"),
        (ValueError("out of memory"), "FAILED"),
        (replaced(Interrupted(signal.SIGTERM)), "KILLED"),
        (replaced(ValueError("out of memory")), "FAILED"),
        (None, "FINISHED"),
    ],
)
def test_a_run_ends_with_the_status_of_its_block(client, exception, expected):
    fingerprint = f"ends-{expected}-{type(exception).__name__}-{exception}"
    with pytest.raises(type(exception)) if exception else nullcontext(), open_run(fingerprint) as run:
        if exception:
            raise exception
    assert status(client, run.id) == expected


def test_a_run_whose_process_died_is_resumed_and_not_duplicated(client):
    with open_run("died") as first:
        for epoch in (1, 2):
            first.log_metrics({"train/loss": 1 / epoch}, epoch)
    client.update_run(first.id, status="RUNNING")  # as a process that was killed leaves it
    with open_run("died") as second:
        assert second.id == first.id
        assert logged_epochs(client, second.id) == 2
    assert status(client, first.id) == "FINISHED"
    assert len(runs_of(client, "died")) == 1


def test_a_run_whose_process_died_is_ended_by_the_next_training(client):
    with open_run("left") as left:
        pass
    client.update_run(left.id, status="RUNNING")  # as a process that was killed leaves it
    with open_run("next"):
        assert status(client, left.id) == "KILLED"


def test_a_training_that_ends_while_another_checks_it_does_not_count_as_killed(client, monkeypatch):
    with open_run("ending") as ending:
        pass
    client.update_run(ending.id, status="RUNNING")

    def is_training_locked(fingerprint: str) -> bool:
        if fingerprint == "ending":
            client.set_terminated(ending.id, "FINISHED")  # which it does before it releases its lock
        return False

    monkeypatch.setattr("cifar_pipeline.tracking.client.is_training_locked", is_training_locked)
    with open_run("looking"):
        assert status(client, ending.id) == "FINISHED"


def test_only_a_rerun_opens_another_run_which_is_then_resumed(client):
    with open_run("again") as first:
        pass
    with pytest.raises(KeyboardInterrupt), open_run("again", rerun="a") as stopped:
        raise KeyboardInterrupt
    with open_run("again") as reused:  # the finished run, not the rerun's
        pass
    assert reused.id == first.id and status(client, stopped.id) == "KILLED"
    with open_run("again", rerun="a") as second:
        assert logged_epochs(client, second.id) == 0
    assert second.id == stopped.id
    assert second.id != first.id
    with open_run("again") as third:
        pass
    assert third.id == second.id
    assert len(runs_of(client, "again")) == 2


def test_a_stale_run_is_ended_by_a_rerun(client):
    with open_run("alone") as first:
        pass
    client.update_run(first.id, status="RUNNING")  # as a process that was killed leaves it
    with open_run("alone", rerun="a") as second:
        assert status(client, first.id) == "KILLED"
    assert second.id != first.id


def test_a_rerun_that_crashed_its_process_twice_is_skipped_once_and_then_tried_in_another_run(client):
    parent = client.create_run(connect()[1]).info.run_id
    trial = Trial(parent, 0, (), (), rerun="s")

    def again():
        return training_run("deadly", "sgd-mse-0", CONFIG, DATA, "a", trial)

    for _ in range(2):
        with again() as run:
            pass
        client.update_run(run.id, status="RUNNING")  # as a process that was killed leaves it
    with pytest.raises(UserError, match="start the sweep with rerun=true to try it again"), again():
        pass
    assert status(client, run.id) == "FAILED" and finished_run("deadly", "s") is None
    with again() as other:
        pass
    assert other.id != run.id and len(runs_of(client, "deadly")) == 2
    finished = finished_run("deadly", "s")
    assert finished is not None and finished.info.run_id == other.id


def test_another_fingerprint_is_another_run(client):
    with open_run("one") as one, open_run("two") as two:
        assert one.id != two.id


def test_metrics_keep_their_names_and_steps(client):
    with open_run("metrics") as run:
        run.log_metrics({"per_class/a b/recall": 0.5, "test/accuracy": 1.0})
        run.log_metrics({"test/accuracy": 0.25}, step=3)
    history = client.get_metric_history(run.id, "test/accuracy")
    assert [(metric.step, metric.value) for metric in history] == [(0, 1.0), (3, 0.25)]
    assert client.get_run(run.id).data.metrics == {"per_class/a b/recall": 0.5, "test/accuracy": 0.25}


def test_results_are_logged_as_models_and_files_once(client, tmp_path):
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "MLmodel").write_text("flavors: {}\n")
    (tmp_path / "metadata.json").write_text("{}")
    with open_run("result") as run:
        run.log_result(tmp_path, {"device": "cpu"}, {"parameters": 62006})
        run.log_result(tmp_path, {"device": "cpu"}, {"parameters": 62006})
    logged = client.get_run(run.id)
    (output,) = logged.outputs.model_outputs
    assert client.get_logged_model(output.model_id).name == "last"
    assert [artifact.path for artifact in client.list_artifacts(run.id) if artifact.path.endswith(".json")] == [
        "metadata.json"
    ]
    assert logged.data.tags["device"] == "cpu"
    assert [metric.value for metric in client.get_metric_history(run.id, "parameters")] == [62006]


def test_later_results_go_to_the_trainings_run(client, capsys):
    with open_run("later") as run:
        pass
    with resume_run(run.id, "sgd-mse-0") as later:
        later.log_metrics({"test/accuracy": 0.5})
    assert later.id == run.id and status(client, run.id) == "FINISHED"
    assert capsys.readouterr().out == ""


def test_results_go_to_a_new_run_if_the_trainings_run_is_not_in_this_database(client, capsys):
    with resume_run("0" * 32, "adam-mse-1") as run:
        pass
    assert "is not in this MLflow database: logging the results to a new run, adam-mse-1" in capsys.readouterr().out
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
def test_a_name_has_the_options_and_an_experiment_other_than_the_tutorial(experiment, optimizer, name):
    assert run_name({"experiment": experiment, "optimizer": optimizer, "loss": "mse", "model": "lenet"}, 0) == name


def test_the_data_set_has_schema_and_shapes_as_mlflow_infers_them_from_arrays(client):
    with open_run("schema") as run:
        pass
    ((entry,),) = ((each.dataset for each in client.get_run(run.id).inputs.dataset_inputs),)
    inferred = mlflow.data.from_numpy(np.zeros((9, 8, 8, 1), np.uint8), targets=np.zeros(9, np.int64)).to_dict()
    assert json.loads(entry.schema) == json.loads(inferred["schema"])
    profile = json.loads(entry.profile)
    shapes = {key: value for key, value in json.loads(inferred["profile"]).items() if key.endswith("_shape")}
    assert profile == shapes | {"images": {"train": 9}, "classes": 2}
    assert (entry.name, entry.digest, entry.source) == ("digits", DATA["hash"][:36], "scikit-learn")


def system_steps(client: MlflowClient, run_id: str) -> list[int]:
    return [metric.step for metric in client.get_metric_history(run_id, "system/cpu_utilization_percentage")]


@pytest.mark.parametrize("exception", [None, ValueError("wrong"), KeyboardInterrupt(), SystemExit(143)])
def test_system_metrics_stop_with_the_block_and_continue_their_steps(client, monkeypatch, exception):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.02")
    fingerprint = f"measured-{type(exception).__name__}"
    for _ in range(2):
        with (
            pytest.raises(type(exception)) if exception else nullcontext(),
            open_run(fingerprint) as run,
            run.system_metrics(True),
        ):
            before = len(system_steps(client, run.id))
            # Metrics are sent in batches, which get larger; the last one is sent at the end.
            time.sleep(0.5)
            if exception:
                raise exception
        assert not [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]
        steps = system_steps(client, run.id)
        assert len(steps) > before and steps == list(range(len(steps)))


def test_system_metrics_are_not_imported_where_they_are_off(client, monkeypatch):
    name = "mlflow.system_metrics.system_metrics_monitor"
    monkeypatch.delitem(sys.modules, name, raising=False)
    with open_run("unmeasured") as run, run.system_metrics(False):
        assert name not in sys.modules


def test_a_missing_package_of_the_system_metrics_is_named(client, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("mlflow.system_metrics")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psutil", None)
    with (
        pytest.raises(UserError, match="mlflow.log_system_metrics needs the package psutil"),
        open_run("blind") as run,
        run.system_metrics(True),
    ):
        pass


def test_a_pruned_run_is_killed_with_its_reason_until_it_is_resumed(client):
    with pytest.raises(TrialPruned), open_run("pruned") as run:
        raise TrialPruned("Pruned after epoch 1 of 3.")
    assert status(client, run.id) == "KILLED"
    assert client.get_run(run.id).data.tags["pruned"] == "Pruned after epoch 1 of 3."
    with open_run("pruned") as resumed:
        assert resumed.id == run.id and "pruned" not in client.get_run(run.id).data.tags
    assert status(client, run.id) == "FINISHED"
