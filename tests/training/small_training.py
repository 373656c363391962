"""Build a training of a few steps as the train stage does, without MLflow."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.models.pretrained import load_pretrained
from cifar_pipeline.tracking.model_uri import resolve_model
from cifar_pipeline.training.checkpoints import EpochMetrics, RunDir
from cifar_pipeline.training.compiled.engine import EAGER, Engine
from cifar_pipeline.training.datamodule import ImageDataModule
from cifar_pipeline.training.distributed import SINGLE_PROCESS
from cifar_pipeline.training.hardware import Hardware
from cifar_pipeline.training.module import Classifier
from cifar_pipeline.training.setup import TrainingSetup, build_training
from cifar_pipeline.training.trainer import TrainingResult, fit
from helpers.config_project import Project

CPU = Hardware("cpu", 1, 1, "32-true", "test")


class Logged(Logger):
    """Logger that keeps the metrics of each epoch, and fails if an epoch is logged twice."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: dict[int, dict[str, float]] = {}

    name, version = "kept", 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        assert step not in self.epochs, f"epoch {step} is logged twice"
        self.epochs[step] = dict(metrics)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


class MetricReader(Callback):
    """Keep the metrics that a callback finds at the end of each epoch, by hook."""

    def __init__(self) -> None:
        self.seen: dict[str, list[dict[str, float]]] = {}

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.read("on_validation_epoch_end", trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.read("on_validation_end", trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.read("on_train_epoch_end", trainer)

    def read(self, hook: str, trainer: Trainer) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.seen.setdefault(hook, []).append(metrics)


@dataclass
class Training:
    """A training before it runs; it then counts optimizer steps and records their learning rates."""

    config: DictConfig
    setup: TrainingSetup
    run_dir: RunDir
    logger: Logged
    steps: int = 0
    rates: tuple[float, ...] = ()

    @property
    def module(self) -> Classifier:
        return self.setup.module

    @property
    def datamodule(self) -> ImageDataModule:
        return self.setup.datamodule

    @property
    def history_file(self) -> Path:
        assert self.setup.history_file is not None
        return self.setup.history_file

    def run(self, callbacks: Sequence[Callback] = ()) -> TrainingResult:
        by_name = {str(number): callback for number, callback in enumerate(callbacks)}
        return fit(replace(self.setup, run_dir=self.run_dir, callbacks=by_name), [self.logger])


def start(
    project: Project,
    config: DictConfig,
    dataset: Dataset,
    folder: Path | None = None,
    engine: Engine = EAGER,
    checkpoint_interval_seconds: float | None = None,
) -> Training:
    """Build a training; it counts its optimizer steps in `steps` and records their learning rates in `rates`.

    Features of a frozen network are computed in single precision.
    """
    run_dir = RunDir(folder or project.folder / "training")
    run_dir.path.mkdir(exist_ok=True)
    precision = "32-true" if config.precision.cpu == "auto" else config.precision.cpu
    setup = build_training(
        config,
        dataset,
        replace(CPU, precision=precision),
        engine,
        run_dir,
        SINGLE_PROCESS,
        {},
        load_pretrained(config.model, resolve_model),
    )
    setup = replace(
        setup,
        history_file=project.folder / "reports" / "history.csv",
        checkpoint_interval_seconds=checkpoint_interval_seconds,
    )
    training = Training(config, setup, run_dir, Logged())
    module = setup.module

    def record(module: Classifier, *_: Any) -> None:
        optimizer: Any = module.optimizers(use_pl_optimizer=False)
        training.steps += 1
        training.rates += (optimizer.param_groups[0]["lr"],)

    original = module.on_before_optimizer_step
    module.on_before_optimizer_step = lambda *args: (record(module), original(*args))[1]  # type: ignore[method-assign]
    return training


def batch_limit(batches: int) -> list[str]:
    """Return overrides that limit epochs to `batches` batches."""
    return [f"trainer.limit_train_batches={batches}", f"trainer.limit_val_batches={batches}"]


def without_speed(rows: list[EpochMetrics]) -> list[EpochMetrics]:
    """Return the rows without the speed, which differs between trainings."""
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]
