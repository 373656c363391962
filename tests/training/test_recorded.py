"""What a run and its files say about a training is what happened, and not what was asked for."""

import json
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch  # noqa: F401  (before a fixture says that there is no GPU)
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
from cifar_pipeline.training.compiled.step import CompiledSteps
from cifar_pipeline.training.hardware import Hardware
from cifar_pipeline.training.module import Classifier
from cifar_pipeline.training.trainer import TrainingSetup, fit
from helpers.config_project import Ended, Project

QUICK = ("data=digits", "trainer.batch_size=9", "trainer.max_epochs=2", "runtime.accelerator=cpu", "runtime.threads=1")
COMPILED = ("runtime.engine=compiled", "runtime.steps_per_chunk=5")


def trained(project: Project, *more: str, code: int = 0) -> Ended:
    ended = project.start(train, *QUICK, *more)
    assert ended.code == code, ended.err
    return ended


def recorded(project: Project) -> tuple[dict[str, Any], dict[str, str]]:
    """The facts in models/, and the tags of the only training's run."""
    facts = json.loads((project.folder / "models" / "metadata.json").read_text())
    (run,) = runs(project)
    return facts, run.data.tags


def runs(project: Project) -> list[Run]:
    client = MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("cifar-pipeline")
    assert experiment
    return list(client.search_runs([experiment.experiment_id]))


def test_single_steps_in_place_of_blocks_are_recorded_as_such(ready: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def impossible(*_: Any) -> None:
        raise NotImplementedError("no such operation")

    monkeypatch.setattr(CompiledSteps, "compile", impossible)
    ended = trained(ready, *COMPILED)
    assert "engine eager (planned: compiled)" in ended.err
    facts, tags = recorded(ready)
    assert facts["timing"]["engine"] == tags["engine"] == "eager"
    assert (tags["threads"], tags["strategy"], tags["images_per_step"]) == ("1", "single_device", "9")


def test_precision_is_recorded_as_lightning_takes_it(project: Project, digits: Dataset) -> None:
    """`train` refuses this one; whatever else Lightning may change is seen in the same way."""
    made = start(project, project.compose("trainer.max_epochs=1", "trainer.batch_size=45"), digits)
    plan = TrainingSetup(
        made.module, made.images, made.config.trainer, Hardware("cpu", 1, 1, "16-mixed", "x"), made.folder
    )
    with pytest.warns(UserWarning, match="fp16 is not supported on CPU"):
        assert fit(plan, made.logger).runtime["precision"] == "bf16-mixed"


def test_a_training_taken_up_with_other_threads_says_both(ready: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = Classifier.on_train_batch_start

    def stop(self: Classifier, batch: Any, index: int) -> None:
        if self.current_epoch == 1 and index == 3:
            raise KeyboardInterrupt
        usual(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_train_batch_start", stop)
        trained(ready, code=128 + signal.SIGINT)
    ended = trained(ready, "runtime.threads=2")
    assert "threads 1, then 2 (planned: 2)" in ended.err
    facts, tags = recorded(ready)
    assert facts["timing"]["threads"] == tags["threads"] == "1, then 2"
    assert (facts["timing"]["engine"], facts["epochs"]) == ("eager", 2)

    # Whoever takes the result later has not trained it, whatever threads are there.
    trained(ready, "runtime.threads=1")
    assert recorded(ready)[1]["threads"] == "1, then 2"


def test_the_losses_of_validation_and_test_are_the_one_that_was_trained(ready: Project) -> None:
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
    facts, _ = recorded(ready)
    assert (facts["best_epoch"], facts["epochs"], facts["timing"]["images_per_step"]) == (2, 3, "45")
