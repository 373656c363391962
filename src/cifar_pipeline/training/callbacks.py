"""The callback that turns each epoch into a row: kept in the checkpoint, handed to the logger, said to the person.

How far the epoch is: a bar on a terminal; lines for a file or a pipe, if the epoch takes long.

Lightning's MLFlowLogger on a run that somebody else opens and ends.

What each epoch came to: a row per epoch, its metrics, the file history.csv.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from cifar_pipeline.training.datamodule import ImageDataModule
from cifar_pipeline.training.module import Classifier
from cifar_pipeline.utils.console import format_duration, info, progress_bar, warning
from cifar_pipeline.utils.errors import describe_environment_error

REFRESH_SECONDS = 0.2
# For a file or a pipe, which gets a line at each epoch's end anyway.
LINE_SECONDS = 10.0


class EpochProgressBar(Callback):
    """A bar per epoch that vanishes with it, moved a few times a second, so that it costs a training nothing."""

    def __init__(self, data: ImageDataModule) -> None:
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
        bar = progress_bar(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, images", images, transient=True,
            min_interval=LINE_SECONDS, initial=min(done, images),
        )  # fmt: skip
        self.advance = self.open.enter_context(bar)
        self.seen, self.when = 0, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seen += batch[1].numel() * trainer.world_size
        if time.monotonic() - self.when > REFRESH_SECONDS:
            self.advance(self.seen)
            self.seen, self.when = 0, time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.open.close()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.open.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.open.close()


# `epoch` counted from 1; `train/loss`, `train/accuracy`, `val/loss`, `val/accuracy` (with a validation part), `lr`,
# `images_per_second`.
EpochMetrics = dict[str, float]


def loggable(row: EpochMetrics) -> tuple[EpochMetrics, int]:
    """The metrics of a row, and the epoch that they are logged under."""
    return {key: value for key, value in row.items() if key != "epoch"}, int(row["epoch"])


def format_epoch(row: EpochMetrics, epochs: int) -> str:
    """A row as a line for a person."""
    val = f"val/loss {row['val/loss']:.4f}  val/accuracy {row['val/accuracy']:.2%}  " if "val/loss" in row else ""
    return (
        f"epoch {row['epoch']:.0f}/{epochs}  train/loss {row['train/loss']:.4f}  "
        f"train/accuracy {row['train/accuracy']:.2%}  {val}{row['images_per_second']:,.0f} images/s"
    )


def write_history(rows: list[EpochMetrics], path: Path) -> None:
    """Write the rows as CSV, the epoch first."""
    pandas.DataFrame(rows).astype({"epoch": int}).to_csv(path, index=False)


class ResumableMLFlowLogger(MLFlowLogger):
    """Logs to the run `run_id`; steps up to `logged` stand there already, from before a training was broken off."""

    def __init__(self, tracking_uri: str, run_id: str, logged: int) -> None:
        super().__init__(tracking_uri=tracking_uri, run_id=run_id)
        self.logged = logged
        self.unsent: list[tuple[Mapping[str, float], int | None]] = []

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send them, or keep them until the store answers again: what it can't take stops no training."""
        if step is not None and step <= self.logged:
            return
        self.unsent.append((metrics, step))
        try:
            self.send_kept()
        except Exception as error:
            fault = describe_environment_error(error)
            if fault is None:
                raise
            if len(self.unsent) == 1:
                warning(f"{fault} The training goes on, and its metrics are kept until they can be sent.")

    def send_kept(self) -> None:
        """Send what is still kept. Raises whatever keeps the store from taking it."""
        while self.unsent:
            super().log_metrics(*self.unsent[0])
            del self.unsent[0]

    def log_rows(self, rows: list[EpochMetrics]) -> None:
        """Log those epochs of before which this run does not have."""
        for row in rows:
            self.log_metrics(*loggable(row))

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Leave the run open: models and figures are still to come when Lightning is done."""


DIGITS = 6


class EpochHistory(Callback):
    """Collects a row for each finished epoch; after a resume the rows of before are there too."""

    def __init__(self) -> None:
        self.rows: list[EpochMetrics] = []
        self.start, self.train_seconds = time.perf_counter(), 0.0
        self.seconds_before = 0.0
        self.line = ""
        self.going_since = self.start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.going_since = time.perf_counter()
        self.start = self.going_since - self.seconds_before
        if isinstance(trainer.logger, ResumableMLFlowLogger):
            # The run may lack epochs of before: it is a new one, or its store was away until the process was killed.
            trainer.logger.log_rows(self.rows)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log_summary(trainer.max_epochs or 0)
        self.start, self.train_seconds = time.perf_counter(), 0.0
        self.going_since = self.start

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # The first batch may have been compiled for, which the epochs to come are not.
        if batch_idx == 0 and trainer.num_training_batches > 1:
            self.going_since = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log_summary(trainer.max_epochs or 0)

    def _log_summary(self, epochs: int) -> None:
        """Say what the last epoch came to, now that its checkpoint is written: what was said is not lost any more."""
        if self.line:
            # Each epoch to come is taken to last as long as this one.
            left = (epochs - len(self.rows)) * (time.perf_counter() - self.going_since)
            info(self.line + (f"  {format_duration(left)} left" if left else ""))
            self.line = ""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.train_seconds = time.perf_counter() - self.start

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        pl_module.check_finite_loss()
        seconds = self.train_seconds or time.perf_counter() - self.start
        row = {"epoch": trainer.current_epoch + 1.0}
        train_sums, val_sums = (
            pl_module.all_reduce_metrics(pl_module.train_sums),
            pl_module.all_reduce_metrics(pl_module.val_sums),
        )
        row |= {f"train/{key}": value for key, value in train_sums.compute().items()}
        if val_sums.images:
            row |= {f"val/{key}": value for key, value in val_sums.compute().items()}
        row |= {"lr": trainer.optimizers[0].param_groups[0]["lr"]}
        row |= {"images_per_second": train_sums.images / seconds}
        # Rounded once, so that MLflow, the file and the line on the screen hold the same numbers.
        row = {key: round(value, DIGITS) for key, value in row.items()}
        self.rows.append(row)
        if trainer.logger:
            trainer.logger.log_metrics(*loggable(row))
        self.line = format_epoch(row, trainer.max_epochs or 0)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": time.perf_counter() - self.start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.seconds_before = state_dict["rows"], state_dict["seconds"]
