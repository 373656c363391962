"""One training, from its first step or its last checkpoint to its end."""

import logging
import signal
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PyTorchProfiler, SimpleProfiler
from torch.nn.modules.batchnorm import _BatchNorm

from cifar_pipeline.console import say, warn
from cifar_pipeline.interruption import Interrupted
from cifar_pipeline.training.average import is_average
from cifar_pipeline.training.checkpoints import AtomicCheckpoints, WithinEpoch, checkpoint_callbacks, resume_point
from cifar_pipeline.training.datamodule import Pictures
from cifar_pipeline.training.epochs import EpochRows
from cifar_pipeline.training.folder import TrainingFolder
from cifar_pipeline.training.hardware import Hardware
from cifar_pipeline.training.history import Row
from cifar_pipeline.training.module import Classifier
from cifar_pipeline.training.processes import ALONE, Processes
from cifar_pipeline.training.progress import EpochProgress
from cifar_pipeline.training.together import OwnSignals, Start, together

# simple: seconds in each of Lightning's own calls. pytorch: each operator of a few steps, and a trace for a browser.
PROFILERS = {"simple": SimpleProfiler, "pytorch": PyTorchProfiler}


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
    logger: Logger | None,
    checkpoint_every: float | None = None,
    profiler: str | None = None,
    average: Callback | None = None,
    processes: Processes = ALONE,
) -> Fitted:
    """Train `module` with the values of conf/trainer; checkpoints go to `folder`, and from there it goes on.

    They are written at the end of each epoch and, within it, every `checkpoint_every` seconds. `profiler` names one of
    `PROFILERS`: where the time went is then told in a file beside them. `average` is what is validated and kept in
    place of the last weights (`average.py`). Of several `processes` each calls this, and the first decides where to
    begin.

    Raises `Interrupted` when it was stopped, `Fault` when another process was, and what `Classifier` raises.
    """
    _quieten()
    start = None
    if processes.is_first:
        start = Start(folder.path.name, resume_point(folder.path, module.state_dict(), data.chunk))
        if processes.are_several and hardware.accelerator == "cpu" and _has_batch_norm(module):
            warn("On a CPU each process normalises its own share of a batch: the result is not that of one process.")
    with together(processes, hardware.accelerator, folder.path.name, start) as (processes, start):
        if not start.is_needed:
            return Fitted([], 0.0)
        if start.checkpoint:
            say(f"Going on from the checkpoint {start.checkpoint}")
        trainer, epochs = _trainer(
            module, data, options, hardware, folder, logger, checkpoint_every, profiler, average, processes
        )
        seconds = _run(trainer, module, data, start.checkpoint)
    if profiler:
        say(f"Profile: {', '.join(map(str, sorted(folder.path.glob('fit-profile*'))))}")
    return Fitted(epochs.rows, seconds)


def _run(trainer: Trainer, module: Classifier, data: Pictures, checkpoint: Path | None) -> float:
    """Train, and say how many seconds it took."""
    start = time.perf_counter()
    try:
        trainer.fit(module, datamodule=data, ckpt_path=str(checkpoint) if checkpoint else None, weights_only=True)
    except (SystemExit, KeyboardInterrupt) as stop:
        # Lightning ends with an exit code of its own after Ctrl-C.
        number = signal.SIGTERM if isinstance(stop, Interrupted) else signal.SIGINT
        line = f"Stopped in epoch {trainer.current_epoch + 1}: the same command goes on from the last checkpoint."
        raise Interrupted(number, line) from None
    return time.perf_counter() - start


def _trainer(
    module: Classifier,
    data: Pictures,
    options: Mapping[str, Any],
    hardware: Hardware,
    folder: TrainingFolder,
    logger: Logger | None,
    checkpoint_every: float | None,
    profiler: str | None,
    average: Callback | None,
    processes: Processes,
) -> tuple[Trainer, EpochRows]:
    """Lightning's trainer, and what collects its rows."""
    epochs = EpochRows()
    trainer = Trainer(
        accelerator=hardware.accelerator,
        devices=processes.here,
        num_nodes=processes.machines,
        strategy=processes.strategy,
        sync_batchnorm=processes.are_several and hardware.accelerator == "cuda",
        use_distributed_sampler=False,
        precision=hardware.precision,  # type: ignore[arg-type]
        max_epochs=options["max_epochs"],
        limit_train_batches=_limit(module, options),
        limit_val_batches=options["limit_val_batches"],
        gradient_clip_val=options["gradient_clip_val"],
        accumulate_grad_batches=_parts(module, data, options),
        logger=False if logger is None else logger,
        callbacks=[
            *([average] if average else []),
            *([OwnSignals()] if processes.are_several else []),
            epochs,
            EpochProgress(data),
            WithinEpoch(folder.path, checkpoint_every),
            *checkpoint_callbacks(folder.path, data.has_val, is_average(average)),
        ],
        plugins=[
            AtomicCheckpoints(folder.path.name),
            *([processes.environment] if processes.environment is not None else []),
        ],
        profiler=PROFILERS[profiler](dirpath=folder.path, filename="profile") if profiler else None,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder.path,
    )
    return trainer, epochs


def _has_batch_norm(module: Classifier) -> bool:
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def _parts(module: Classifier, data: Pictures, options: Mapping[str, Any]) -> int:
    """Parts in which the batch of an optimizer step goes through the network."""
    if not module.optimizer.full_batch:
        return _parts_of_a_batch(options)
    batches = data.train_batches
    return min(batches, options["limit_train_batches"] or batches)


def _limit(module: Classifier, options: Mapping[str, Any]) -> int | None:
    """At most how many parts there are in an epoch, which are Lightning's batches."""
    limit: int | None = options["limit_train_batches"]
    return limit * _parts_of_a_batch(options) if limit and not module.optimizer.full_batch else limit


def _parts_of_a_batch(options: Mapping[str, Any]) -> int:
    return max(1, int(options["batch_size"] // (options["micro_batch_size"] or options["batch_size"])))


def _quieten() -> None:
    """Drop what Lightning says about itself and what nobody here can act on."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*isinstance\\(treespec, LeafSpec\\).*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*is smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*Total length of `list` across ranks is zero.*")
    # What is logged was made the same on all processes before.
    warnings.filterwarnings("ignore", ".*It is recommended to use `self.log.*sync_dist=True.*")
