"""How far the epoch is: a bar on a terminal; lines for a file or a pipe, if the epoch takes long."""

import time
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from cifar_pipeline.console import progress
from cifar_pipeline.training.datamodule import Pictures

SECONDS_BETWEEN = 0.2
# For a file or a pipe, which gets a line at each epoch's end anyway.
SECONDS_BETWEEN_LINES = 10.0


class EpochProgress(Callback):
    """A bar per epoch that vanishes with it, moved a few times a second, so that it costs a training nothing."""

    def __init__(self, data: Pictures) -> None:
        self.data = data
        self.open = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning does not announce an epoch again that it goes on with.
        if trainer.fit_loop.restarted_mid_epoch:
            done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
            self._begin(trainer, done * self._together)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, 0)

    @property
    def _together(self) -> int:
        """Images in what Lightning takes for a batch."""
        return self.data.batch_size * max(1, self.data.chunk)

    def _begin(self, trainer: Trainer, done: int) -> None:
        images = min(self.data.dataset.sizes["train"], int(trainer.num_training_batches) * self._together)
        bar = progress(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, images", images, transient=True,
            every=SECONDS_BETWEEN_LINES, begun=min(done, images),
        )  # fmt: skip
        self.advance = self.open.enter_context(bar)
        self.seen, self.when = 0, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seen += batch[1].numel() * trainer.world_size
        if time.monotonic() - self.when > SECONDS_BETWEEN:
            self.advance(self.seen)
            self.seen, self.when = 0, time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.open.close()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.open.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.open.close()
