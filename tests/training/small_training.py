"""A training of a few steps, put together as src/train.py does it, but for MLflow."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.training.callbacks import EpochMetrics
from cifar_pipeline.training.datamodule import ImageDataModule
from cifar_pipeline.training.hardware import Hardware
from cifar_pipeline.training.module import Classifier
from cifar_pipeline.training.run_dir import RunDir
from cifar_pipeline.training.trainer import (
    TrainingResult,
    TrainingSetup,
    build_datamodule,
    build_module,
    build_weight_averaging,
    fit,
)
from helpers.config_project import Project

CPU = Hardware("cpu", 1, 1, "32-true", "tested")


class Logged(Logger):
    """Keeps what is logged, by epoch; an epoch that is logged twice is an error."""

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


@dataclass
class Training:
    """What `train` has in hand before it trains."""

    config: DictConfig
    module: Classifier
    images: ImageDataModule
    folder: RunDir
    logger: Logged
    steps: int = 0
    rates: tuple[float, ...] = ()

    def run(self) -> TrainingResult:
        hardware = Hardware("cpu", 1, 1, self.config.precision.cpu, "tested")
        average = build_weight_averaging(self.config)
        plan = TrainingSetup(self.module, self.images, self.config.trainer, hardware, self.folder, average)
        return fit(plan, self.logger)


def start(project: Project, config: DictConfig, dataset: Dataset, folder: Path | None = None) -> Training:
    """Everything built; `steps` and `rates` then count the optimizer's steps and remember their learning rates."""
    place = RunDir(folder or project.folder / "training")
    place.path.mkdir(exist_ok=True)
    module, images = build_module(config, dataset), build_datamodule(config, dataset)
    training = Training(config, module, images, place, Logged())

    def note(module: Classifier, *_: Any) -> None:
        optimizer: Any = module.optimizers(use_pl_optimizer=False)
        training.steps += 1
        training.rates += (optimizer.param_groups[0]["lr"],)

    usual = module.on_before_optimizer_step
    module.on_before_optimizer_step = lambda *given: (note(module), usual(*given))[1]  # type: ignore[method-assign]
    return training


def batch_limit(batches: int) -> list[str]:
    """Overrides for epochs of so many batches."""
    return [f"trainer.limit_train_batches={batches}", f"trainer.limit_val_batches={batches}"]


def without_speed(rows: list[EpochMetrics]) -> list[EpochMetrics]:
    """What of a training's rows is the same each time."""
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]
