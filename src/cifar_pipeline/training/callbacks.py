"""Report a training while it runs: progress bar, metrics of each epoch, history.csv, MLflow logger.

`EpochHistory` turns the metrics of each epoch into a row, which goes to history.csv, the loggers and the console.
`EpochProgressBar` shows a bar on a terminal, and in a file or a pipe prints lines during long epochs.
"""

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from cifar_pipeline.training.checkpoints import EpochMetrics, format_epoch, loggable, write_history
from cifar_pipeline.training.datamodule import ImageDataModule
from cifar_pipeline.utils.atomic import exclusive_lock_if_free
from cifar_pipeline.utils.console import format_duration, progress_bar
from cifar_pipeline.utils.errors import describe_environment_error

log = logging.getLogger(__name__)

# Decimal places of the metrics in history.csv, MLflow and the console.
METRIC_DIGITS = 6
# Between two updates of the progress bar.
REFRESH_SECONDS = 0.2
# Between progress lines in a file or a pipe, in addition to the line at each epoch's end.
LINE_SECONDS = 10.0


def count_images(data: ImageDataModule, batches: float) -> int:
    """Return the number of training images in the first `batches` of an epoch, as Lightning counts them."""
    return min(data.dataset.sizes["train"], int(batches) * data.batch_size * max(1, data.chunk))


def batches_done(trainer: Trainer) -> int:
    """Return how many batches of this epoch have been trained on, those before a resume included."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.completed


class EpochProgressBar(Callback):
    """Show a progress bar for each epoch, removed at its end; a few updates a second keep its cost negligible."""

    def __init__(self, data: ImageDataModule) -> None:
        self.data = data
        self.open_bar = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning does not call on_train_epoch_start for an epoch that it resumes.
        if trainer.fit_loop.restarted_mid_epoch:
            self._start_bar(trainer, count_images(self.data, batches_done(trainer)))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_bar(trainer, 0)

    def _start_bar(self, trainer: Trainer, images_done: int) -> None:
        images = count_images(self.data, trainer.num_training_batches)
        bar = progress_bar(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, images", images, transient=True,
            min_interval=LINE_SECONDS, initial=images_done,
        )  # fmt: skip
        self.advance = self.open_bar.enter_context(bar)
        self.pending_images, self.last_refresh = 0, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.pending_images += batch[1].numel() * trainer.world_size
        if time.monotonic() - self.last_refresh > REFRESH_SECONDS:
            self.advance(self.pending_images)
            self.pending_images, self.last_refresh = 0, time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.open_bar.close()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.open_bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.open_bar.close()


class ResumableMLFlowLogger(MLFlowLogger):
    """Log to an MLflow run that is opened and ended elsewhere, and that may have epochs of an interrupted training.

    Args:
        tracking_uri: of the MLflow server or database.
        run_id: the run.
        last_logged_step: steps up to this one are in the run already and are not logged again.
    """

    def __init__(self, tracking_uri: str, run_id: str, last_logged_step: int) -> None:
        super().__init__(tracking_uri=tracking_uri, run_id=run_id)
        self.last_logged_step = last_logged_step
        self.pending: list[tuple[Mapping[str, float], int | None]] = []

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send metrics; if MLflow fails, keep them for the next call instead of stopping the training."""
        if step is not None and step <= self.last_logged_step:
            return
        self.pending.append((metrics, step))
        try:
            self.flush_pending()
        except Exception as error:
            description = describe_environment_error(error)
            if description is None:
                raise
            if len(self.pending) == 1:
                log.warning(f"{description} The training continues; its metrics are kept until they can be sent.")

    def flush_pending(self) -> None:
        """Send the metrics that could not be sent before. Raises what MLflow raises."""
        while self.pending:
            super().log_metrics(*self.pending[0])
            del self.pending[0]

    def log_rows(self, rows: list[EpochMetrics]) -> None:
        """Log the epochs that this run lacks."""
        for row in rows:
            self.log_metrics(*loggable(row))

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Leave the run open: models and figures are logged after the training."""


class EpochHistory(Callback):
    """Turn the metrics that were logged in each epoch into a row, and send it to loggers, console and history.csv.

    The rows are in the checkpoint, so a resumed training has those of all epochs.

    Args:
        data: the batches.
        file: CSV file of the rows, written again at each epoch's end; None: no file.
    """

    def __init__(self, data: ImageDataModule, file: Path | None) -> None:
        self.data, self.file = data, file
        self.rows: list[EpochMetrics] = []
        self.start, self.train_seconds = time.perf_counter(), 0.0
        self.elapsed_before_resume = 0.0
        self.summary = ""
        self.timing_start = self.start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.timing_start = time.perf_counter()
        self.start = self.timing_start - self.elapsed_before_resume
        self._write_file(trainer)
        for logger in trainer.loggers:
            if isinstance(logger, ResumableMLFlowLogger):
                # The run may lack earlier epochs: it is new, or MLflow was unreachable until the process was killed.
                logger.log_rows(self.rows)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log_summary(trainer.max_epochs or 0)
        self.start, self.train_seconds = time.perf_counter(), 0.0
        self.timing_start = self.start

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # The first batch may include a compilation, which later epochs do not.
        if batch_idx == 0 and trainer.num_training_batches > 1:
            self.timing_start = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log_summary(len(self.rows))

    def _log_summary(self, epochs: int) -> None:
        """Log the last epoch's metrics, after its checkpoint is written, so that no logged epoch is ever lost."""
        if self.summary:
            remaining = (epochs - len(self.rows)) * (time.perf_counter() - self.timing_start)
            log.info(self.summary + (f"  {format_duration(remaining)} left" if remaining else ""))
            self.summary = ""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.train_seconds = time.perf_counter() - self.start

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = self.train_seconds or time.perf_counter() - self.start
        row = {"epoch": trainer.current_epoch + 1.0}
        row |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        row |= {"lr": trainer.optimizers[0].param_groups[0]["lr"]}
        row |= {"images_per_second": count_images(self.data, batches_done(trainer)) / seconds}
        # Rounded once, so that MLflow, history.csv and the console show the same numbers.
        row = {key: round(value, METRIC_DIGITS) for key, value in row.items()}
        self.rows.append(row)
        self._write_file(trainer)
        for logger in trainer.loggers:
            logger.log_metrics(*loggable(row))
        self.summary = format_epoch(row, trainer.max_epochs or 0)

    def _write_file(self, trainer: Trainer) -> None:
        if self.file is None or not self.rows or not trainer.is_global_zero:
            return
        # While `evaluate` replaces the folder, the file keeps its former rows until the next epoch.
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with exclusive_lock_if_free(self.file.parent) as is_free:
            if is_free:
                write_history(self.rows, self.file)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": time.perf_counter() - self.start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.elapsed_before_resume = state_dict["rows"], state_dict["seconds"]
