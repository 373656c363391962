"""A training that was stopped inside an epoch resumes there and ends with the same result."""

from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from small_training import CPU, Logged, MetricReader, without_speed
from torch import nn

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.training.checkpoints import EpochMetrics, RunDir
from cifar_pipeline.training.compiled import step
from cifar_pipeline.training.compiled.engine import EAGER, Engine
from cifar_pipeline.training.setup import TrainingSetup, build_datamodule, build_module, build_weight_averaging
from cifar_pipeline.training.trainer import fit
from cifar_pipeline.utils.process import Interrupted
from helpers.config_project import Project, options_of

COMPILED = Engine("compiled", "test", 2, 3)
AFTER_EACH_STEP = 1e-9  # seconds


class WithDropout(nn.Module):
    """A network with dropout, whose random state has to be resumed too."""

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(channels * size**2, classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(images)
        return logits


GROUPS = ("optimizer", "scheduler", "augmentation", "weight_averaging")
OPTIONS = [[f"{group}={option}" for option in options_of(group)] for group in GROUPS]
# Each option at least once; with `make test-long` each one also alone.
COMBINATIONS = [
    *islice(zip(*map(cycle, OPTIONS), strict=False), max(map(len, OPTIONS))),
    *(pytest.param((option,), marks=pytest.mark.long) for options in OPTIONS for option in options),
]


@pytest.fixture(autouse=True)
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the compilation, which takes long and is tested in test_compiled_steps.py."""
    monkeypatch.setattr(step, "compile_graph", lambda graph, arguments: graph)


def config_with_randomness(project: Project, *more: str) -> DictConfig:
    short = ("trainer.batch_size=9", "trainer.max_epochs=2")
    return project.compose("scheduler=cosine", "optimizer=adam", "augmentation=flip_crop", *short, *more)


class Trained:
    """A training in `folder`, stopped after `stop_after` batches unless that is 0."""

    def __init__(self, config: DictConfig, dataset: Dataset, engine: Engine, folder: Path, stop_after: int = 0) -> None:
        folder.mkdir(exist_ok=True)
        self.module, datamodule = build_module(config, dataset, engine), build_datamodule(config, dataset, engine)
        network = WithDropout(3, dataset.shape[0], len(dataset.classes))
        self.module.net.net = network  # type: ignore[assignment]
        self.rows: list[EpochMetrics] = []
        self.reader = MetricReader()
        seen, original = [], self.module.on_train_batch_start

        def begin(batch: Any, index: int) -> None:
            seen.append(index)
            if len(seen) == stop_after:
                raise KeyboardInterrupt
            original(batch, index)

        self.module.on_train_batch_start = begin  # type: ignore[method-assign]
        try:
            averaging, run_dir = build_weight_averaging(config), RunDir(folder)
            setup = TrainingSetup(
                self.module,
                datamodule,
                config.trainer,
                CPU,
                run_dir,
                averaging,
                checkpoint_interval_seconds=AFTER_EACH_STEP,
                callbacks={"reader": self.reader},
            )
            self.rows = fit(setup, [Logged()]).rows
        except Interrupted:
            assert stop_after
        self.batches = len(seen)


def assert_equal(one: Trained, other: Trained) -> None:
    assert without_speed(one.rows) == without_speed(other.rows)
    for hook, seen in other.reader.seen.items():
        assert seen == one.reader.seen[hook][-len(seen) :], hook  # without rounding
    for name, value in one.module.state_dict().items():
        assert torch.equal(other.module.state_dict()[name], value), name


@pytest.mark.parametrize("engine", [EAGER, COMPILED], ids=["eager", "compiled"])
@pytest.mark.parametrize("options", COMBINATIONS, ids=" ".join)
def test_a_training_resumed_within_an_epoch_ends_with_the_same_weights_and_metrics(
    project: Project, digits: Dataset, engine: Engine, options: tuple[str, ...]
) -> None:
    if engine.is_compiled:  # which does not average weights
        options = tuple(option for option in options if not option.startswith("weight_averaging="))
    config = config_with_randomness(project, *options)
    if engine.is_compiled and config.optimizer.get("full_batch"):
        pytest.skip("the compiled engine does not support full batches")
    undisturbed = Trained(config, digits, engine, project.folder / "undisturbed")
    stopped = Trained(config, digits, engine, project.folder / "abc", stop_after=2 * undisturbed.batches // 3)
    resumed = Trained(config, digits, engine, project.folder / "abc")
    assert_equal(undisturbed, resumed)
    if not config.optimizer.get("full_batch"):
        # Only the batch at which it was stopped is repeated.
        assert stopped.batches + resumed.batches == undisturbed.batches + 1


def test_a_training_resumed_at_a_smaller_last_batch_compiles_full_batches(project: Project, digits: Dataset) -> None:
    """Compiled and eager steps differ in their last bits, so which are compiled must not depend on an interruption."""
    config = config_with_randomness(project, "trainer.batch_size=20")
    Trained(config, digits, COMPILED, project.folder / "abc", stop_after=3)
    resumed = Trained(config, digits, COMPILED, project.folder / "abc")
    assert resumed.module.batch_size == config.trainer.batch_size
