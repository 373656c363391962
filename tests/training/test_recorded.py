"""Runs and metadata record what a training really did, not what was requested."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch  # noqa: F401  (imported before a fixture hides the GPU)
import pandas
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from small_training import start

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.inference.predictor import Predictor
from cifar_pipeline.inference.trained_model import TrainedModel
from cifar_pipeline.stages.train import train
from cifar_pipeline.training import hardware
from cifar_pipeline.training.compiled.step import CompiledSteps
from cifar_pipeline.training.hardware import Hardware
from cifar_pipeline.training.module import Classifier
from cifar_pipeline.training.setup import TrainingSetup
from cifar_pipeline.training.trainer import fit
from cifar_pipeline.utils.cpu_load import LoadMeter
from helpers.config_project import Ended, Project
from helpers.source_tree import EXPERIMENT

QUICK = ("data=digits", "trainer.batch_size=9", "trainer.max_epochs=2", "runtime.accelerator=cpu", "runtime.threads=1")
COMPILED = ("runtime.engine=compiled", "runtime.steps_per_chunk=5")


def trained(project: Project, *more: str, code: int = 0) -> Ended:
    ended = project.start(train, *QUICK, *more)
    assert ended.code == code, ended.err
    return ended


def recorded(project: Project) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the metadata in models/, and the tags of the only run."""
    metadata = json.loads((project.folder / "models" / "metadata.json").read_text())
    (run,) = runs(project)
    return metadata, run.data.tags


def runs(project: Project) -> list[Run]:
    client = MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment
    return list(client.search_runs([experiment.experiment_id]))


def test_the_fallback_to_eager_steps_is_recorded(ready: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise NotImplementedError("no such operation")

    monkeypatch.setattr(CompiledSteps, "compile", fail)
    ended = trained(ready, *COMPILED)
    assert "engine eager (planned: compiled)" in ended.err
    metadata, tags = recorded(ready)
    assert metadata["timing"]["engine"] == tags["engine"] == "eager"
    assert (tags["threads"], tags["strategy"], tags["images_per_step"]) == ("1", "single_device", "9")


def test_the_precision_that_lightning_uses_is_recorded(project: Project, digits: Dataset) -> None:
    """The train stage refuses this precision, but any other value that Lightning changes is recorded likewise."""
    made = start(project, project.compose("trainer.max_epochs=1", "trainer.batch_size=45"), digits)
    setup = TrainingSetup(
        made.module, made.datamodule, made.config.trainer, Hardware("cpu", 1, 1, "16-mixed", "x"), made.run_dir
    )
    with pytest.warns(UserWarning, match="fp16 is not supported on CPU"):
        assert fit(setup, [made.logger]).runtime["precision"] == "bf16-mixed"


@contextmanager
def interrupted_in_the_second_epoch() -> Iterator[None]:
    original = Classifier.on_train_batch_start

    def stop(self: Classifier, batch: Any, index: int) -> None:
        if self.current_epoch == 1 and index == 3:
            raise KeyboardInterrupt
        original(self, batch, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "on_train_batch_start", stop)
        yield


def test_a_training_resumed_under_another_load_keeps_its_threads(
    ready: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(hardware, "allowed_cores", lambda: 2)
    monkeypatch.setattr("cifar_pipeline.stages.train.available_cores", lambda: 2)
    auto = ("runtime.threads=auto", "runtime.min_images_per_thread=1")
    monkeypatch.setattr(LoadMeter, "busy_cores", lambda _: 1.0)
    with interrupted_in_the_second_epoch():
        ended = trained(ready, *auto, code=128 + signal.SIGINT)
    assert "cpu, 1 thread (requested; other processes keep 1.0 of 2 cores busy)" in ended.out
    monkeypatch.setattr(LoadMeter, "busy_cores", lambda _: 0.0)
    trained(ready, *auto)
    assert recorded(ready)[1]["threads"] == "1"
    # A training that begins now takes both cores.
    trained(ready, *auto, "seed=1")
    assert sorted(run.data.tags["threads"] for run in runs(ready)) == ["1", "2"]


def test_a_training_resumed_with_other_threads_records_both(ready: Project) -> None:
    with interrupted_in_the_second_epoch():
        trained(ready, code=128 + signal.SIGINT)
    ended = trained(ready, "runtime.threads=2")
    assert "threads 1, then 2 (planned: 2)" in ended.err
    metadata, tags = recorded(ready)
    assert metadata["timing"]["threads"] == tags["threads"] == "1, then 2"
    assert (metadata["timing"]["engine"], metadata["epochs"]) == ("eager", 2)

    # A later command that reuses the result has not trained it, whatever its threads.
    trained(ready, "runtime.threads=1")
    assert recorded(ready)[1]["threads"] == "1, then 2"


def test_validation_and_test_use_the_loss_of_the_training(ready: Project) -> None:
    trained(ready, f"loss.class_weights={[float(number) for number in range(1, 11)]}".replace(" ", ""))
    models = TrainedModel.open(Path("models"), "last")
    images, labels = Dataset.open(Path("data/processed")).split("val")
    logits = torch.from_numpy(Predictor.open(models.model).session.predict(images, 30)[0])
    history = pandas.read_csv("reports/history.csv")
    assert models.loss(logits, torch.from_numpy(labels)) == pytest.approx(history["val/loss"].iloc[-1], rel=1e-4)
    unweighted = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    assert models.loss(logits, torch.from_numpy(labels)) > 2 * float(unweighted)


def test_the_best_epoch_is_the_one_that_the_best_weights_are_from(
    ready: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([0.3, 0.5, 0.4])
    monkeypatch.setattr(
        Classifier,
        "on_validation_epoch_end",
        lambda self: self.log("val/accuracy", next(accuracies), logger=False),
    )
    trained(ready, "trainer.max_epochs=3", "trainer.batch_size=45")
    metadata, _ = recorded(ready)
    assert (metadata["best_epoch"], metadata["epochs"], metadata["timing"]["images_per_step"]) == (2, 3, "45")
