"""How far the epoch is, on a terminal; History's line at each epoch's end is all that a file or a pipe gets."""

import time
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from cifar_pipeline.console import progress, terminal

SECONDS_BETWEEN = 0.2


class EpochProgress(Callback):
    """A bar per epoch that vanishes with it, moved a few times a second, so that it costs a training nothing."""

    def __init__(self) -> None:
        self.open = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning does not announce an epoch again that it goes on with.
        if trainer.fit_loop.restarted_mid_epoch:
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if terminal.is_terminal:
            what = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self.advance = self.open.enter_context(progress(what, trainer.num_training_batches, transient=True))
            self.shown, self.when = 0, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if terminal.is_terminal and time.monotonic() - self.when > SECONDS_BETWEEN:
            self.advance(batch_idx + 1 - self.shown)
            self.shown, self.when = batch_idx + 1, time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.open.close()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.open.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.open.close()
