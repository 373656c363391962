"""A training that was stopped within an epoch goes on within it, and ends as if nothing had happened."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from small_training import CPU, Logged, without_speed
from torch import nn

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.training.callbacks import EpochMetrics
from cifar_pipeline.training.compiled import step
from cifar_pipeline.training.compiled.engine import EAGER, Engine
from cifar_pipeline.training.run_dir import RunDir
from cifar_pipeline.training.trainer import TrainingSetup, build_datamodule, build_module, build_weight_averaging, fit
from cifar_pipeline.utils.process import Interrupted
from helpers.config_project import Project, options_of

COMPILED = Engine("compiled", "tested", 2, 3)
AFTER_EACH_STEP = 1e-9  # seconds


class WithDropout(nn.Module):
    """Randomness inside the network, which has to go on as well."""

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(channels * size**2, classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(images)
        return logits


GROUPS = ("optimizer", "scheduler", "augmentation", "weight_averaging")
CHOICES = [f"{group}={option}" for group in GROUPS for option in options_of(group)]


@pytest.fixture(autouse=True)
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """To compile takes long, and tests/training/test_compiled_steps.py does it."""
    monkeypatch.setattr(step, "compile_graph", lambda graph, arguments: graph)


def restless(project: Project, *more: str) -> DictConfig:
    short = ("trainer.batch_size=9", "trainer.max_epochs=2")
    return project.compose("scheduler=cosine", "optimizer=adam", "augmentation=flip_crop", *short, *more)


class Trained:
    """One process's share of a training in `folder`, stopped after some batches if so wished."""

    def __init__(self, config: DictConfig, dataset: Dataset, engine: Engine, folder: Path, stop_after: int = 0) -> None:
        folder.mkdir(exist_ok=True)
        self.module, pictures = build_module(config, dataset, engine), build_datamodule(config, dataset, engine)
        network = WithDropout(3, dataset.shape[0], len(dataset.classes))
        self.module.net.net = network  # type: ignore[assignment]
        self.rows: list[EpochMetrics] = []
        seen, usual = [], self.module.on_train_batch_start

        def begin(batch: Any, index: int) -> None:
            seen.append(index)
            if len(seen) == stop_after:
                raise KeyboardInterrupt
            usual(batch, index)

        self.module.on_train_batch_start = begin  # type: ignore[method-assign]
        try:
            average, place = build_weight_averaging(config), RunDir(folder)
            plan = TrainingSetup(
                self.module, pictures, config.trainer, CPU, place, average, checkpoint_interval_seconds=AFTER_EACH_STEP
            )
            self.rows = fit(plan, Logged()).rows
        except Interrupted:
            assert stop_after
        self.batches = len(seen)


def is_equal(one: Trained, other: Trained) -> None:
    assert without_speed(one.rows) == without_speed(other.rows)
    for name, value in one.module.state_dict().items():
        assert torch.equal(other.module.state_dict()[name], value), name


@pytest.mark.parametrize("engine", [EAGER, COMPILED], ids=["eager", "compiled"])
@pytest.mark.parametrize("choice", CHOICES)
def test_a_training_stopped_within_an_epoch_ends_with_the_same_weights_and_means(
    project: Project, digits: Dataset, engine: Engine, choice: str
) -> None:
    config = restless(project, choice)
    if engine.is_compiled and config.optimizer.get("full_batch"):
        pytest.skip("a full batch is never in blocks")
    if engine.is_compiled and config.weight_averaging._target_ is not None:
        pytest.skip("weights that are averaged are never stepped in blocks")
    whole = Trained(config, digits, engine, project.folder / "whole")
    stopped = Trained(config, digits, engine, project.folder / "abc", stop_after=2 * whole.batches // 3)
    going_on = Trained(config, digits, engine, project.folder / "abc")
    is_equal(whole, going_on)
    if not config.optimizer.get("full_batch"):
        # Nothing is done twice but the batch at which it was stopped.
        assert stopped.batches + going_on.batches == whole.batches + 1


def test_going_on_at_an_epochs_smaller_last_batch_it_takes_the_others_in_blocks(
    project: Project, digits: Dataset
) -> None:
    """Compiled and single steps differ in their last bits, so which are compiled must not depend on a kill."""
    config = restless(project, "trainer.batch_size=20")
    Trained(config, digits, COMPILED, project.folder / "abc", stop_after=3)
    going_on = Trained(config, digits, COMPILED, project.folder / "abc")
    assert going_on.module.batch_size == config.trainer.batch_size
