"""Callbacks that report a training while it runs: progress bar, metrics of each epoch, history.csv, why it ended.

`EpochHistory` turns the metrics of each epoch into a row, which goes to history.csv, the loggers and the console.
`EpochProgressBar` shows a bar on a terminal, and in a file or a pipe prints lines during long epochs.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from cifar_pipeline.training.checkpoints import EpochMetrics, format_epoch, loggable, write_history
from cifar_pipeline.training.datamodule import ImageDataModule
from cifar_pipeline.training.loggers import KeyRecorder, ResumableMLFlowLogger, log_rows
from cifar_pipeline.training.module import Classifier, is_epoch_ending
from cifar_pipeline.utils.atomic import exclusive_lock_if_free
from cifar_pipeline.utils.console import format_duration, progress_bar
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import list_names

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


class EpochHistory(Callback):
    """Turn the metrics that were logged in each epoch into a row, and send it to loggers, console and history.csv.

    The rows are in the checkpoint, so a resumed training has those of all epochs.

    Args:
        data: the batches.
        file: CSV file of the rows, written again at each epoch's end; None: no file.
        monitors: by configuration key, metrics that others choose by.

    Raises:
        UserError: nothing has logged a metric of `monitors` by the end of the first epoch.
    """

    def __init__(self, data: ImageDataModule, file: Path | None, monitors: Mapping[str, str]) -> None:
        self.data, self.file, self.monitors = data, file, monitors
        self.rows: list[EpochMetrics] = []
        self.start, self.validation_start, self.validation_seconds = time.perf_counter(), 0.0, 0.0
        self.elapsed_before_resume = 0.0
        self.summary = ""
        self.timing_start = self.start

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_file(trainer)
        # The run may lack earlier epochs: it is new, or MLflow was unreachable until the process was killed.
        log_rows([logger for logger in trainer.loggers if isinstance(logger, ResumableMLFlowLogger)], self.rows)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.timing_start = time.perf_counter()
        self.start = self.timing_start - self.elapsed_before_resume

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log_summary(trainer.max_epochs or 0)
        self.start, self.validation_seconds = time.perf_counter(), 0.0
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
        self.validation_start = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validation_seconds += time.perf_counter() - self.validation_start

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = time.perf_counter() - self.start - self.validation_seconds
        self._check_monitors(trainer)
        row = {"epoch": trainer.current_epoch + 1.0}
        # Metrics of training come first, also where a validation within the epoch has logged its own before.
        names = sorted(trainer.callback_metrics, key=lambda name: not name.startswith("train/"))
        row |= {name: float(trainer.callback_metrics[name]) for name in names}
        row |= {"lr": trainer.optimizers[0].param_groups[0]["lr"]}
        row |= {"images_per_second": count_images(self.data, batches_done(trainer)) / seconds}
        # Rounded once, so that MLflow, history.csv and the console show the same numbers.
        row = {key: round(value, METRIC_DIGITS) for key, value in row.items()}
        self.rows.append(row)
        self._write_file(trainer)
        metrics, epoch = loggable(row)
        # Some callbacks send their metrics themselves, and Lightning those of `self.log`.
        recorders = [logger for logger in trainer.loggers if isinstance(logger, KeyRecorder)]
        sent = {*trainer.logged_metrics, *(key for recorder in recorders for key in recorder.keys)}
        metrics = {key: value for key, value in metrics.items() if key not in sent}
        for logger in trainer.loggers:
            if logger not in recorders:
                logger.log_metrics(metrics, epoch)
        self.summary = format_epoch(row, trainer.max_epochs or 0)

    def _check_monitors(self, trainer: Trainer) -> None:
        metrics = trainer.callback_metrics
        has_validated = any(name.startswith("val/") for name in metrics)
        for key, name in self.monitors.items():
            if name not in metrics and (has_validated or not name.startswith("val/")):
                raise UserError(f"{key}={name}: nothing has logged it; logged are {list_names(sorted(metrics))}.")

    def _write_file(self, trainer: Trainer) -> None:
        if self.file is None or not self.rows or not trainer.is_global_zero:
            return
        # While `evaluate` replaces the folder, the file keeps its former rows until the next epoch.
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with exclusive_lock_if_free(self.file.parent) as is_free:
            if is_free:
                write_history(self.rows, self.file)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": time.perf_counter() - self.start - self.validation_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.elapsed_before_resume = state_dict["rows"], state_dict["seconds"]


class MetricReset(Callback):
    """Forget the metrics of the former epoch, so that none of them is taken for one of an epoch without validation."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.callback_metrics.clear()


class StepLossLogger(Callback):
    """Log the training loss within an epoch to all loggers as `train/loss_step`, the mean since the value before.

    Args:
        every_n_steps: optimizer steps between two values.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self.last_step, self.loss, self.images = 0, 0.0, 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.loss, self.images = 0.0, 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Classifier)
        step = trainer.global_step
        if step // self.every_n_steps == self.last_step // self.every_n_steps:
            return
        sums = pl_module.all_reduce_metrics(pl_module.train_sums)
        loss = float(sums.loss)
        value = round((loss - self.loss) / (sums.images - self.images), METRIC_DIGITS)
        self.last_step, self.loss, self.images = step, loss, sums.images
        for logger in trainer.loggers:
            logger.log_metrics({"train/loss_step": value}, step)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.last_step, "loss": self.loss, "images": self.images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_step, self.loss, self.images = (state_dict[key] for key in ("step", "loss", "images"))


class GradientNorm(Callback):
    """Log the gradient's norm before clipping: mean and maximum over the steps of an epoch.

    Args:
        norm_type: the order of the norm, over all elements of all gradients.
    """

    logged_metrics = ("train/gradient_norm", "train/gradient_norm_max")

    def __init__(self, norm_type: float = 2.0) -> None:
        self.norm_type = norm_type
        self._reset()

    def _reset(self) -> None:
        self.total, self.maximum, self.steps = torch.zeros((), dtype=torch.float64), torch.zeros(()), 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reset()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        norm = get_total_norm(gradients, self.norm_type).detach()
        self.total = self.total + norm.double()
        self.maximum = torch.maximum(self.maximum.to(norm.device), norm)
        self.steps += 1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if is_epoch_ending(trainer):
            values = (self.total / self.steps, self.maximum.double())
            pl_module.log_dict(dict(zip(self.logged_metrics, values, strict=True)), logger=False, batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        return {"total": float(self.total), "maximum": float(self.maximum), "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.total = torch.tensor(state_dict["total"], dtype=torch.float64)
        self.maximum, self.steps = torch.tensor(state_dict["maximum"]), state_dict["steps"]


class ReduceLROnPlateau(Callback):
    """Reduce the learning rate when a metric has not improved for some epochs: `torch.optim.lr_scheduler`'s, saved.

    Args:
        monitor: the metric, in epochs that log it.
        mode: whether larger or smaller values of it are better, `max` or `min`.
        factor: of each reduction.
        patience: epochs without an improvement before a reduction.
        threshold: changes of at most this size are no improvement.
        cooldown: epochs after a reduction that do not count.
        min_factor: the smallest factor of `optimizer.lr`.
    """

    def __init__(
        self,
        monitor: str,
        mode: Literal["max", "min"],
        factor: float,
        patience: int,
        threshold: float,
        cooldown: int,
        min_factor: float,
    ) -> None:
        self.monitor = monitor
        # Of an optimizer with the learning rate 1, the reduced learning rate is the factor.
        self.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer,
            mode,
            factor,
            patience,
            threshold,
            "abs",
            cooldown,
            min_factor,
        )

    def __call__(self, step: int, steps: int) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor in trainer.callback_metrics:
            self.plateau.step(float(trainer.callback_metrics[self.monitor]))

    def state_dict(self) -> dict[str, Any]:
        return {"plateau": self.plateau.state_dict(), "factor": self(0, 1)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.plateau.load_state_dict(state_dict["plateau"])
        self.optimizer.param_groups[0]["lr"] = state_dict["factor"]


class StopRecorder(Callback):
    """Record in the checkpoint that a callback or a limit has ended the training, and say which one.

    Lightning's checkpoints do not record it, so that a training killed after its last epoch would train another one.
    """

    def __init__(self) -> None:
        self.trainer: Trainer | None = None
        self.is_stopped = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.trainer = trainer

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.is_stopped

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Lightning would end the training without a validation.
        if 0 < trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        assert self.trainer is not None
        return {"is_stopped": self.trainer.should_stop}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.is_stopped = state_dict["is_stopped"]


def stop_reason(trainer: Trainer, epochs: int) -> str:
    """Return why a training has ended before trainer.max_epochs; empty if it has not.

    Args:
        trainer: after the training.
        epochs: epochs that were trained, the last of which may be unfinished.
    """
    is_unfinished = batches_done(trainer) < trainer.num_training_batches
    if not trainer.should_stop or (epochs == trainer.max_epochs and not is_unfinished):
        return ""
    return f"epoch {epochs} of {trainer.max_epochs}: {next(_stop_reasons(trainer), 'a callback ended the training')}"


def _stop_reasons(trainer: Trainer) -> Iterator[str]:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping) and callback.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED:
            epochs = f"{callback.patience} epoch{'s' if callback.patience > 1 else ''}"
            yield f"{callback.monitor} has not improved for {epochs}"
        elif isinstance(callback, EarlyStopping) and callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            yield str(callback.stopping_reason_message).removesuffix(" Signaling Trainer to stop.").rstrip(".")
        if isinstance(callback, Timer) and (callback.time_remaining() or 0.0) <= 0:
            yield "trainer.max_time is over"
    if 0 < trainer.max_steps <= trainer.global_step:
        yield f"trainer.max_steps={trainer.max_steps} is reached"
