"""Any callback of Lightning can monitor loss and accuracy of each epoch, and finds the values of history.csv."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from omegaconf import DictConfig
from small_training import MetricReader, start

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.training.checkpoints import EpochMetrics
from cifar_pipeline.training.compiled import step
from cifar_pipeline.training.compiled.engine import EAGER, Engine
from cifar_pipeline.utils.process import Interrupted
from helpers.config_project import ROOT, Project
from helpers.parameters import some_of
from helpers.source_tree import HANGS_AFTER

COMPILED = Engine("compiled", "test", 2, 3)
TRAIN, VAL = ("train/loss", "train/accuracy"), ("val/loss", "val/accuracy")
EPOCHS = 4

each_engine = pytest.mark.parametrize("engine", [EAGER, COMPILED], ids=["eager", "compiled"])


@pytest.fixture(autouse=True)
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the compilation, which takes long and is tested in test_compiled_steps.py."""
    monkeypatch.setattr(step, "compile_graph", lambda graph, arguments: graph)


@pytest.fixture
def config(project: Project) -> DictConfig:
    return project.compose("optimizer=adam", "trainer.batch_size=9", f"trainer.max_epochs={EPOCHS}")


class Best(Callback):
    """A user's callback, which keeps the lowest value of a metric."""

    def __init__(self, monitor: str) -> None:
        self.monitor, self.value = monitor, float("inf")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.value = min(self.value, float(trainer.callback_metrics[self.monitor]))


class OwnMetric(Callback):
    """A user's callback, which logs a metric from the second epoch on."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch:
            pl_module.log("own/metric", 0.5 * trainer.current_epoch, logger=False)


class StopInEpoch(Callback):
    """A user's callback, which ends the training at its third batch."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trainer.should_stop = batch_idx == 2


class HistoryReader(Callback):
    """Keep the epochs in history.csv, as it is before each epoch and each batch; `KeyboardInterrupt` at a batch."""

    def __init__(self, path: Path, stop_at: tuple[int, int] | None = None) -> None:
        self.path, self.stop_at = path, stop_at
        self.seen: list[list[str]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.seen.append([row["epoch"] for row in read(self.path)] if self.path.exists() else [])
        if (trainer.current_epoch, batch_idx) == self.stop_at:
            raise KeyboardInterrupt


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def assert_seen(seen: list[dict[str, float]], rows: list[EpochMetrics], names: tuple[str, ...]) -> None:
    assert [{name: round(metrics[name], 6) for name in names} for metrics in seen] == [
        {name: row[name] for name in names} for row in rows
    ]


@each_engine
def test_a_users_callback_monitors_the_validation_loss(
    project: Project, config: DictConfig, digits: Dataset, engine: Engine
) -> None:
    best = Best(monitor="val/loss")
    rows = start(project, config, digits, engine=engine).run([best]).rows
    assert round(best.value, 6) == min(row["val/loss"] for row in rows)


@each_engine
def test_the_metrics_of_an_epoch_are_there_in_each_hook_after_its_validation(
    project: Project, config: DictConfig, digits: Dataset, engine: Engine
) -> None:
    reader = MetricReader()
    rows = start(project, config, digits, engine=engine).run([reader]).rows
    assert len(rows) == EPOCHS and list(rows[0]) == ["epoch", *TRAIN, *VAL, "lr", "images_per_second"]
    for hook in ("on_validation_epoch_end", "on_validation_end", "on_train_epoch_end"):
        assert_seen(reader.seen[hook], rows, TRAIN + VAL)
    correct = [metrics["train/accuracy"] * digits.sizes["train"] for metrics in reader.seen["on_train_epoch_end"]]
    assert correct == pytest.approx([round(number) for number in correct], rel=1e-14)  # in double precision


@each_engine
def test_without_a_validation_split_the_training_metrics_are_there(
    project: Project, config: DictConfig, digits_without_val: Dataset, engine: Engine
) -> None:
    reader = MetricReader()
    rows = start(project, config, digits_without_val, engine=engine).run([reader]).rows
    assert list(reader.seen) == ["on_train_epoch_end"]
    assert_seen(reader.seen["on_train_epoch_end"], rows, TRAIN)
    assert set(reader.seen["on_train_epoch_end"][-1]) == set(TRAIN)


@each_engine
@pytest.mark.parametrize("after_the_epoch", [True, False])
@pytest.mark.parametrize(("monitor", "mode"), some_of([("val/loss", "min"), ("train/accuracy", "max")], 0))
def test_early_stopping_monitors_any_of_them(
    project: Project,
    config: DictConfig,
    digits: Dataset,
    capsys: pytest.CaptureFixture[str],
    engine: Engine,
    after_the_epoch: bool,
    monitor: str,
    mode: str,
) -> None:
    stopping = EarlyStopping(
        monitor, mode=mode, min_delta=1e9, patience=2, check_on_train_epoch_end=after_the_epoch
    )  # which no epoch after the first reaches
    rows = start(project, config, digits, engine=engine).run([stopping]).rows
    assert len(rows) == 3 and stopping.stopped_epoch == 2
    assert round(float(stopping.best_score), 6) == rows[0][monitor]
    assert not capsys.readouterr().out.endswith(" left\n")


@each_engine
def test_a_training_stopped_within_an_epoch_has_the_metrics_of_its_batches(
    project: Project, config: DictConfig, digits: Dataset, engine: Engine
) -> None:
    training = start(project, config, digits, engine=engine)
    (row,) = training.run([StopInEpoch()]).rows
    batches = 3 * max(1, training.datamodule.chunk)
    assert training.module.train_sums.images == 9 * batches < digits.sizes["train"]
    assert row["train/loss"] == round(training.module.train_sums.compute()["loss"], 6)
    assert row["train/accuracy"] == round(training.module.train_sums.compute()["accuracy"], 6)
    assert "val/loss" in row


def test_a_metric_that_a_callback_logs_is_recorded_with_the_others(
    project: Project, config: DictConfig, digits: Dataset
) -> None:
    training = start(project, config, digits)
    rows = training.run([OwnMetric()]).rows
    assert [row.get("own/metric") for row in rows] == [None, 0.5, 1.0, 1.5]
    assert [metrics.get("own/metric") for metrics in training.logger.epochs.values()] == [None, 0.5, 1.0, 1.5]
    with training.run_dir.write_result({}, rows):
        pass
    assert training.run_dir.rows() == rows


@each_engine
def test_the_history_grows_with_each_epoch_and_a_resumed_training_has_all_of_it(
    project: Project, config: DictConfig, digits: Dataset, engine: Engine
) -> None:
    stopped = start(project, config, digits, engine=engine)
    reader = HistoryReader(stopped.history_file, stop_at=(2, 1))
    with pytest.raises(Interrupted):
        stopped.run([reader])
    batches = len(reader.seen) // 2 - 1  # of an epoch
    assert reader.seen == [*[[]] * batches, *[["1"]] * batches, *[["1", "2"]] * 2]
    stopped.history_file.unlink()

    resumed = start(project, config, digits, engine=engine)
    resumed.logger.epochs = stopped.logger.epochs
    reader = HistoryReader(resumed.history_file)
    rows = resumed.run([reader]).rows
    assert reader.seen[0] == ["1", "2"] and len(rows) == EPOCHS
    written = [{key: float(value) for key, value in row.items()} for row in read(resumed.history_file)]
    assert written == rows


@pytest.mark.long
def test_two_processes_have_the_metrics_of_one(project: Project, config: DictConfig, digits: Dataset) -> None:
    reader = MetricReader()
    start(project, config, digits).run([reader])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    overrides = ["optimizer=adam", "trainer.batch_size=9", f"trainer.max_epochs={EPOCHS}", "trainer=ddp"]
    ended = subprocess.run(
        [*torchrun, str(Path(__file__).with_name("train_rank.py")), str(digits.folder), *overrides],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", ROOT / "tests")))},
        capture_output=True,
        text=True,
        timeout=HANGS_AFTER,
    )
    assert ended.returncode == 0, ended.stderr
    first, second = (json.loads((project.folder / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first["seen"] == second["seen"]
    for hook, seen in reader.seen.items():
        for one, two in zip(seen, first["seen"][hook], strict=True):
            assert two == pytest.approx(one, rel=1e-5)
    assert_seen(first["seen"]["on_train_epoch_end"], first["rows"], TRAIN + VAL)
    # Only rank zero writes the history.
    assert len(first["history"].splitlines()) == 1 + EPOCHS and second["history"] is None
