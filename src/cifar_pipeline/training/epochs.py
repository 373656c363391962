"""The callback that turns each epoch into a row: kept in the checkpoint, handed to the logger, said to the person."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from cifar_pipeline.console import duration, say
from cifar_pipeline.training.history import Row, line_of, metrics_of
from cifar_pipeline.training.logger import RunLogger
from cifar_pipeline.training.module import Classifier

DIGITS = 6


class EpochRows(Callback):
    """Collects a row for each finished epoch; after a resume the rows of before are there too."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.start, self.train_seconds = time.perf_counter(), 0.0
        self.seconds_before = 0.0
        self.line = ""
        self.going_since = self.start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.going_since = time.perf_counter()
        self.start = self.going_since - self.seconds_before
        if isinstance(trainer.logger, RunLogger):
            # The run may lack epochs of before: it is a new one, or its store was away until the process was killed.
            trainer.logger.log_rows(self.rows)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._say_line(trainer.max_epochs or 0)
        self.start, self.train_seconds = time.perf_counter(), 0.0
        self.going_since = self.start

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # The first batch may have been compiled for, which the epochs to come are not.
        if batch_idx == 0 and trainer.num_training_batches > 1:
            self.going_since = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._say_line(trainer.max_epochs or 0)

    def _say_line(self, epochs: int) -> None:
        """Say what the last epoch came to, now that its checkpoint is written: what was said is not lost any more."""
        if self.line:
            # Each epoch to come is taken to last as long as this one.
            left = (epochs - len(self.rows)) * (time.perf_counter() - self.going_since)
            say(self.line + (f"  {duration(left)} left" if left else ""))
            self.line = ""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.train_seconds = time.perf_counter() - self.start

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        pl_module.refuse_infinite_loss()
        seconds = self.train_seconds or time.perf_counter() - self.start
        row = {"epoch": trainer.current_epoch + 1.0}
        train_sums, val_sums = pl_module.of_all(pl_module.train_sums), pl_module.of_all(pl_module.val_sums)
        row |= {f"train/{key}": value for key, value in train_sums.means().items()}
        if val_sums.images:
            row |= {f"val/{key}": value for key, value in val_sums.means().items()}
        row |= {"lr": trainer.optimizers[0].param_groups[0]["lr"]}
        row |= {"images_per_second": train_sums.images / seconds}
        # Rounded once, so that MLflow, the file and the line on the screen hold the same numbers.
        row = {key: round(value, DIGITS) for key, value in row.items()}
        self.rows.append(row)
        if trainer.logger:
            trainer.logger.log_metrics(*metrics_of(row))
        self.line = line_of(row, trainer.max_epochs or 0)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": time.perf_counter() - self.start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.seconds_before = state_dict["rows"], state_dict["seconds"]
