"""Loggers, max_time, fast_dev_run and a user's callback in the `train` stage, on a few digits."""

import csv
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import wandb as lightning_wandb
from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_pipeline.stages.train import train
from evaluate import evaluate
from helpers.config_project import Ended, Project

SMALL = ("data=digits", "optimizer=adam", "trainer.batch_size=9", "trainer.max_epochs=2", "runtime.threads=1")
NOT_IN_HISTORY = {"epoch", "step"}


class Broken(Callback):
    """A user's callback with a bug."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise LookupError("a bug of the user's")


class Own(Callback):
    """A user's callback, which logs a metric as Lightning's documentation shows it."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("own/metric", float(trainer.current_epoch))


@pytest.fixture(autouse=True)
def without_wandb_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    wandb.teardown()  # what an earlier test has set
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def start(project: Project, *overrides: str) -> Ended:
    return project.start(train, *SMALL, *overrides)


def runs(project: Project) -> list[Run]:
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments))


def history(project: Project) -> list[dict[str, float]]:
    with (project.folder / "reports" / "history.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_several_loggers_have_the_numbers_of_history_csv(ready: Project) -> None:
    ended = start(ready, "logger=[csv,tensorboard,wandb]", "logger.wandb.offline=true", "runtime.log_every_n_steps=4")
    assert ended.code == 0, ended.err
    rows = history(ready)
    (run,) = runs(ready)
    assert run.info.status == "FINISHED"
    (folder,) = (ready.folder / "logs" / "tensorboard").iterdir()
    assert folder.name.startswith("adam-cross_entropy-0-")
    events = EventAccumulator(str(folder)).Reload()
    (written,) = (ready.folder / "logs" / "csv").glob("*/metrics.csv")
    with written.open(newline="") as file:
        logged = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in logged if row["train/loss_step"]]
    assert steps == list(range(4, steps[-1] + 1, 4)) and len(steps) > 4
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    for key in rows[0].keys() - NOT_IN_HISTORY:
        values = [row[key] for row in rows]
        assert [metric.value for metric in client.get_metric_history(run.info.run_id, key)] == values
        assert [float(row[key]) for row in logged if row[key]] == values
        assert [event.value for event in events.Scalars(key)] == pytest.approx(values)
        assert [event.step for event in events.Scalars(key)] == [1, 2]
    in_mlflow = client.get_metric_history(run.info.run_id, "train/loss_step")
    assert [metric.step for metric in in_mlflow] == steps
    (offline,) = (ready.folder / "logs" / "wandb").glob("offline-run-*")
    assert list(offline.glob("*.wandb"))
    assert (written.parent / "hparams.yaml").read_text().count("batch_size: 9") == 1

    # They are no part of the fingerprint: without them it is the same training.
    again = start(ready, "logger=[]")
    assert "already finished" in again.out and len(runs(ready)) == 1


def test_a_resumed_training_continues_the_csv_file(ready: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(StopOnce, "epoch", 1)
        target = f"+callbacks.stop._target_={__name__}.StopOnce"
        stopped = start(ready, "logger=[csv]", target)
        assert stopped.code == 130
        patch.setattr(StopOnce, "epoch", 99)
        assert start(ready, "logger=[csv]", target).code == 0
    (written,) = (ready.folder / "logs" / "csv").glob("*/metrics.csv")
    with written.open(newline="") as file:
        logged = list(csv.DictReader(file))
    assert [(row["step"], float(row["train/loss"])) for row in logged] == [
        (str(int(row["epoch"])), row["train/loss"]) for row in history(ready)
    ]


class StopOnce(Callback):
    """Interrupt the training at the end of an epoch's first batch."""

    epoch = 99

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch == self.epoch:
            raise KeyboardInterrupt


def test_a_logger_without_its_login_or_package_is_refused_before_there_is_a_run(
    ready: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = start(ready, "logger=[wandb]")
    assert ended.code == 2 and not runs(ready)
    assert "logger=wandb cannot log" in ended.err and "logger.wandb.offline=true" in ended.err
    assert "Traceback" not in ended.err
    monkeypatch.setattr(lightning_wandb, "_WANDB_AVAILABLE", False)
    ended = start(ready, "logger=[wandb]")
    assert ended.code == 2 and not runs(ready)
    assert "logger=wandb is not installed" in ended.err and "'.[loggers]'" in ended.err


def test_max_time_leaves_a_finished_model_that_can_be_evaluated(ready: Project) -> None:
    ended = start(ready, "trainer.max_time={milliseconds: 1}")
    assert ended.code == 2  # not one of the units
    ended = start(ready, "trainer.max_time={seconds: 0.001}")
    assert ended.code == 0, ended.err
    assert "Stopped at epoch 1 of 2: trainer.max_time is over" in ended.out
    (run,) = runs(ready)
    assert (run.info.status, run.data.tags["stopped"]) == ("FINISHED", "epoch 1 of 2: trainer.max_time is over")
    assert "val/accuracy" in run.data.metrics
    ended = ready.start(evaluate, "data=digits")
    assert ended.code == 0 and "Test accuracy" in ended.out, ended.err


def test_fast_dev_run_finds_errors_and_leaves_nothing(ready: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(ready.folder.rglob("*.onnx"))
    ended = start(ready, "trainer.fast_dev_run=true", "logger=[csv]", "callbacks=[early_stopping,lr_monitor]")
    assert ended.code == 0, ended.err
    assert "nothing was logged or saved" in ended.out
    assert not runs(ready) and set(ready.folder.rglob("*.onnx")) == before
    for name in ("models", "logs", "reports/history.csv"):
        assert not (ready.folder / name).exists(), name
    monkeypatch.setenv("DVC_STAGE", "train")
    ended = start(ready, "trainer.fast_dev_run=true")
    assert ended.code == 2


def test_a_callback_that_raises_fails_the_run_with_its_own_traceback(ready: Project) -> None:
    with pytest.raises(LookupError, match="a bug of the user's"):
        start(ready, f"+callbacks.broken._target_={__name__}.Broken")
    (run,) = runs(ready)
    assert run.info.status == "FAILED"


def test_a_metric_that_a_callback_logs_reaches_each_logger_once(ready: Project) -> None:
    target = f"+callbacks.own._target_={__name__}.Own"
    ended = start(ready, target, "callbacks=[lr_monitor]", "monitor=own/metric", "logger=[csv]")
    assert ended.code == 0, ended.err
    (run,) = runs(ready)
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    assert [metric.value for metric in client.get_metric_history(run.info.run_id, "own/metric")] == [0.0, 1.0]
    assert [row["own/metric"] for row in history(ready)] == [0.0, 1.0]
    assert len(client.get_metric_history(run.info.run_id, "lr-Adam")) == 2
    best = torch.load(next((ready.folder / ".cache" / "trainings").glob("*/best.ckpt")), weights_only=True)
    assert best["epoch"] == 1


@pytest.mark.long
@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_weights_of_another_precision_are_exported_in_single_precision(ready: Project, precision: str) -> None:
    ended = start(ready, f"precision.cpu={precision}", "tta=flip")
    assert ended.code == 0, ended.err
    weights = load_file(ready.folder / "models" / "last" / "weights.safetensors")
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.float32}
    ended = ready.start(evaluate, "data=digits", "tta=flip", "evaluation.num_attributions=1")
    assert ended.code == 0 and "Test accuracy" in ended.out, ended.err
