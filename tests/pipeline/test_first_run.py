"""Run `dvc repro` offline from scratch: outputs, the MLflow run, and equal numbers everywhere."""

import json
from importlib.metadata import version
from pathlib import Path

import mlflow
import mlflow.onnx
import numpy as np
import onnxruntime
import pandas
import pytest
import yaml

from cifar_pipeline.utils.text import flatten_dict
from helpers.workspace import EPOCHS, STAGES, stages_that

FIGURES = {"learning_curves.png", "confusion.png", "filters.png", "mistakes.png"}
PAGE = "report.html"
TABLES = {"metrics.json", "dataset.json", "per_class.csv", "confusion.csv", "predictions.csv"}


def dotted(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


@pytest.fixture
def run(clone):
    runs = clone.runs()
    assert len(runs) == 1
    return runs[0]


def test_every_stage_runs_and_leaves_its_outputs(reproduced, clone):
    assert stages_that(reproduced.output, "ran") == STAGES
    reports = {path.name for path in (clone.root / "reports").iterdir()}
    assert reports == FIGURES | TABLES | {PAGE, "samples.png", "skipped.csv", "history.csv"}
    for figure in FIGURES | {"samples.png"}:
        assert (clone.root / "reports" / figure).read_bytes().startswith(b"\x89PNG")
    for checkpoint in ("last", "best"):
        assert (clone.root / "models" / checkpoint / "MLmodel").is_file()
    # What git ignores and what the stages write in between does not look like a change.
    assert clone.run("git", "status", "--porcelain") == ""


def test_fallback_data_is_labeled_everywhere(reproduced, clone):
    assert "Continuing with digits instead of CIFAR-10" in reproduced.output
    assert "http://127.0.0.1:9/cifar-10-python.tar.gz: connection refused" in reproduced.output
    assert "`make cifar10`" in reproduced.output
    summary = clone.run("python", "src/report.py", "summary")
    assert "digits (fallback)" in summary
    assert "`make cifar10`" in summary and "`git restore params.yaml composed.yaml dvc.lock reports`" in summary
    dataset = clone.json("data/processed/dataset.json")
    assert (dataset["name"], dataset["requested_title"]) == ("digits", "CIFAR-10")
    assert dataset["sizes"] == {"train": 1294, "val": 144, "test": 359}
    reported = clone.json("reports/dataset.json")
    assert reported["fallback"] is True and reported["name"] == "digits" and reported["hash"] == dataset["hash"]


def test_the_run_records_everything_needed_to_reproduce_it(clone, run):
    composed = yaml.safe_load(clone.read("composed.yaml"))["train"]
    versions = composed.pop("versions")
    assert (run.info.status, run.info.run_name) == ("FINISHED", "sgd-cross_entropy-0")
    assert run.info.run_id == clone.json("models/run.json")["id"]
    assert run.data.params == dict(dotted(composed))

    tags = run.data.tags
    assert tags["fingerprint"] == clone.json("models/metadata.json")["fingerprint"]
    assert tags["command"] == "python src/train.py"
    assert tags["git.commit"] == clone.run("git", "rev-parse", "HEAD~").strip()  # the results were committed after it
    assert tags["git.dirty"] == "false"
    assert tags["dataset"] == "digits"
    assert (tags["device"], tags["threads"], tags["precision"]) == ("cpu, 1 thread", "1", "32-true")
    assert tags["version.torch"].startswith(versions["torch"])
    assert tags["version.torch"] == version("torch") and tags["version.mlflow"] == version("mlflow")
    lock = yaml.safe_load(clone.read("dvc.lock"))["stages"]
    assert tags["dvc.data"] == lock["download"]["outs"][0]["md5"]

    (used,) = run.inputs.dataset_inputs
    assert used.dataset.name == "digits"
    assert clone.json("data/processed/dataset.json")["hash"].startswith(used.dataset.digest)


def test_the_run_shows_the_configuration_the_figures_and_the_tables(clone, run, tmp_path):
    artifacts = {artifact.path for artifact in clone.mlflow.list_artifacts(run.info.run_id)}
    assert artifacts >= FIGURES | TABLES | {PAGE, "config.yaml"}
    assert "code.diff" not in artifacts
    path = clone.mlflow.download_artifacts(run.info.run_id, "config.yaml", str(tmp_path))
    composed = yaml.safe_load(clone.read("composed.yaml"))["train"]
    assert yaml.safe_load(Path(path).read_text(encoding="utf-8")) == {
        k: v for k, v in composed.items() if k != "versions"
    }


def test_history_and_mlflow_hold_the_same_numbers_each_once(clone, run):
    history = pandas.read_csv(clone.root / "reports" / "history.csv")
    epochs = list(range(1, EPOCHS + 1))
    assert list(history["epoch"]) == epochs
    columns = [column for column in history.columns if column != "epoch"]
    assert set(columns) >= {"train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr", "images_per_second"}
    for column in columns:
        logged = clone.mlflow.get_metric_history(run.info.run_id, column)
        assert [(metric.step, metric.value) for metric in logged] == list(zip(epochs, history[column], strict=True))


def test_metrics_json_has_eight_numbers_which_mlflow_has_as_well(clone, run, tmp_path):
    reported, metadata = clone.json("reports/metrics.json"), clone.json("models/metadata.json")
    test = {f"test/{name}" for name in ("accuracy", "top3_accuracy", "loss", "calibration_error")}
    train = {f"train/{name}" for name in ("epochs", "seconds", "images_per_second")}
    flat = flatten_dict(reported, "/")
    assert set(flat) == test | {"val/accuracy"} | train
    assert flat["test/accuracy"] > 0.5 and flat["train/epochs"] == EPOCHS and metadata["parameters"] == 62006
    assert {key: value for key, value in run.data.metrics.items() if key.startswith("test/")} == {
        key: flat[key] for key in test
    }
    assert run.data.metrics["val/accuracy"] == flat["val/accuracy"]
    assert all(flat[f"train/{name}"] == metadata["timing"][name] for name in ("seconds", "images_per_second"))
    for name in ("metrics.json", "dataset.json", "per_class.csv"):
        path = clone.mlflow.download_artifacts(run.info.run_id, name, str(tmp_path))
        assert Path(path).read_text(encoding="utf-8") == clone.read(f"reports/{name}")
    shown = json.loads(clone.dvc("metrics", "show", "--json"))[""]["data"]["reports/metrics.json"]["data"]
    assert shown == reported


def test_the_report_page_describes_this_training(clone, run):
    page = clone.read(f"reports/{PAGE}").replace("\N{NO-BREAK SPACE}", " ")
    metrics = clone.json("reports/metrics.json")
    assert f"{run.info.run_name} on " in page and f"({run.info.run_id})" in page
    assert f"<b>{100 * metrics['test']['accuracy']:.2f} %</b>" in page
    assert "This is the fallback data set" in page
    for recipe in ("tutorial", "sgd: lr 0.001, momentum 0.9", f"max_epochs {EPOCHS}, batch_size 4"):
        assert recipe in page
    assert page.count("<h3>") == 2 and "Orange pixels raise it" in page  # correct and incorrect predictions


def test_the_logged_models_predict_like_the_files(clone, run):
    mlflow.set_tracking_uri(f"sqlite:///{clone.root / 'mlflow.db'}")
    names = {clone.mlflow.get_logged_model(output.model_id).name for output in run.outputs.model_outputs}
    assert names == {"last", "best"}
    images = np.load(clone.root / "data" / "processed" / "test" / "images.npy")
    from_file = onnxruntime.InferenceSession(clone.root / "models" / "last" / "model.onnx")
    expected, probabilities = from_file.run(["logits", "probabilities"], {"images": images})
    uri = f"runs:/{run.info.run_id}/last"
    found = mlflow.pyfunc.load_model(uri).predict(images)
    np.testing.assert_allclose(found["logits"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["probabilities"], probabilities, rtol=1e-5, atol=1e-5)
    assert mlflow.onnx.load_model(uri).graph.node
    # And those answers are the ones that were reported.
    predictions = pandas.read_csv(clone.root / "reports" / "predictions.csv")
    assert list(predictions["prediction"].astype(str)) == [str(answer) for answer in expected.argmax(1)]
