"""One training, from its first step or its last checkpoint to its end."""

import logging
import signal
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from cifar_pipeline.console import say
from cifar_pipeline.training.checkpoints import LAST, AtomicCheckpoints, checkpoint_callbacks
from cifar_pipeline.training.datamodule import Pictures
from cifar_pipeline.training.epochs import EpochRows
from cifar_pipeline.training.folder import TrainingFolder
from cifar_pipeline.training.hardware import Hardware
from cifar_pipeline.training.history import Row
from cifar_pipeline.training.module import Classifier
from cifar_pipeline.training.progress import EpochProgress


class Interrupted(SystemExit):
    """Somebody stopped the training: Ctrl-C (code 130) or SIGTERM (code 143)."""


@dataclass(frozen=True)
class Fitted:
    """A finished training: a row per epoch, and the seconds spent in this process."""

    rows: list[Row]
    seconds: float


def fit(
    module: Classifier,
    data: Pictures,
    options: Mapping[str, Any],
    hardware: Hardware,
    folder: TrainingFolder,
    logger: Logger,
) -> Fitted:
    """Train `module` with the values of conf/trainer; checkpoints go to `folder`, and from there it goes on.

    Raises `Interrupted` when it was stopped, and what `Classifier` raises.
    """
    _quieten()
    epochs, watch = EpochRows(), InterruptionWatch()
    trainer = Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        precision=hardware.precision,  # type: ignore[arg-type]
        max_epochs=options["max_epochs"],
        limit_train_batches=options["limit_train_batches"],
        limit_val_batches=options["limit_val_batches"],
        gradient_clip_val=options["gradient_clip_val"],
        accumulate_grad_batches=_parts(module, data, options),
        logger=logger,
        callbacks=[epochs, EpochProgress(), watch, *checkpoint_callbacks(folder.path, has_val=data.has_val)],
        plugins=[AtomicCheckpoints()],
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder.path,
    )
    last = folder.checkpoint(LAST)
    if last.is_file():
        say(f"Going on from the checkpoint {last}")
    start = time.perf_counter()
    try:
        trainer.fit(module, datamodule=data, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
    except (SystemExit, KeyboardInterrupt):
        say(f"Stopped in epoch {trainer.current_epoch + 1}: the same command goes on from the last checkpoint.")
        raise Interrupted(watch.exit_code) from None
    return Fitted(epochs.rows, time.perf_counter() - start)


class InterruptionWatch(Callback):
    """Remembers what stopped the training: Lightning itself ends with code 1, or 0, whatever it was."""

    exit_code = 128 + signal.SIGTERM

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt):
            self.exit_code = 128 + signal.SIGINT


def _parts(module: Classifier, data: Pictures, options: Mapping[str, Any]) -> int:
    """Batches per optimizer step."""
    if not module.optimizer.full_batch:
        return 1
    batches = data.train_batches
    return min(batches, options["limit_train_batches"] or batches)


def _quieten() -> None:
    """Drop what Lightning says about itself and what nobody here can act on."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*isinstance\\(treespec, LeafSpec\\).*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*is smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*Total length of `list` across ranks is zero.*")
