"""One training, from its first step or its last checkpoint to its end."""

import logging
import signal
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from cifar_pipeline.training.ran import Facts, ReadBack, tell_differences
from cifar_pipeline.training.together import OwnSignals, Start, together

# simple: seconds in each of Lightning's own calls. pytorch: each operator of a few steps, and a trace for a browser.
PROFILERS = {"simple": SimpleProfiler, "pytorch": PyTorchProfiler}


@dataclass(frozen=True)
class Plan:
    """A training before its first step.

    Args:
        module: what is trained.
        pictures: on what.
        options: the values of conf/trainer.
        hardware: on which machine.
        folder: where checkpoints go, and from where it goes on.
        average: what is validated and kept in place of the last weights (`average.py`); None: they themselves.
        processes: those that share the batches; each has the same plan.
        checkpoint_every: seconds between two checkpoints within an epoch; None: only at its end.
        profiler: one of `PROFILERS`; where the time went is then told in a file beside the checkpoints.
    """

    module: Classifier
    pictures: Pictures
    options: Mapping[str, Any]
    hardware: Hardware
    folder: TrainingFolder
    average: Callback | None = None
    processes: Processes = ALONE
    checkpoint_every: float | None = None
    profiler: str | None = None


@dataclass(frozen=True)
class Fitted:
    """A finished training: a row per epoch, the seconds spent in all its processes, and on what it ran."""

    rows: list[Row]
    seconds: float
    ran: Facts


def fit(plan: Plan, logger: Logger | None) -> Fitted:
    """Train as planned, from the newest checkpoint on. Of several processes each calls this, the first with a logger.

    Raises `Interrupted` when it was stopped, `Fault` when another process was, and what `Classifier` raises.
    """
    _quieten()
    processes, accelerator, identity = plan.processes, plan.hardware.accelerator, plan.folder.identity
    start = None
    if processes.is_first:
        start = Start(identity, resume_point(plan.folder.path, plan.module.state_dict(), plan.pictures.chunk))
        if processes.are_several and accelerator == "cpu" and _has_batch_norm(plan.module):
            warn("On a CPU each process normalises its own share of a batch: the result is not that of one process.")
    with together(processes, accelerator, identity, start) as (processes, start):
        if not start.is_needed:
            return Fitted([], 0.0, {})
        if start.checkpoint:
            say(f"Going on from the checkpoint {start.checkpoint}")
        epochs, ran = EpochRows(), ReadBack()
        trainer = _trainer(replace(plan, processes=processes), [epochs, ran], logger)
        _run(trainer, plan, start.checkpoint)
    if plan.profiler and processes.is_first:
        say(f"Profile: {', '.join(map(str, sorted(plan.folder.path.glob('fit-profile*'))))}")
    found = ran.facts()
    if processes.is_first:
        planned = plan.hardware.planned() | {"engine": "block" if plan.pictures.chunk else "plain"}
        tell_differences(planned, found)
    return Fitted(epochs.rows, ran.seconds, found)


def _run(trainer: Trainer, plan: Plan, checkpoint: Path | None) -> None:
    """Train, from this checkpoint on."""
    try:
        trainer.fit(
            plan.module,
            datamodule=plan.pictures,
            ckpt_path=str(checkpoint) if checkpoint else None,
            weights_only=True,
        )
    except (SystemExit, KeyboardInterrupt) as stop:
        # Lightning ends with an exit code of its own after Ctrl-C.
        number = signal.SIGTERM if isinstance(stop, Interrupted) else signal.SIGINT
        line = f"Stopped in epoch {trainer.current_epoch + 1}: the same command goes on from the last checkpoint."
        raise Interrupted(number, line) from None


def _trainer(plan: Plan, keeping: list[Callback], logger: Logger | None) -> Trainer:
    """Lightning's trainer, with the callbacks that keep what happens, and a logger."""
    options, hardware, processes, folder = plan.options, plan.hardware, plan.processes, plan.folder.path
    profiler = PROFILERS[plan.profiler] if plan.profiler and processes.is_first else None
    return Trainer(
        accelerator=hardware.accelerator,
        devices=processes.here,
        num_nodes=processes.machines,
        strategy=processes.strategy,
        sync_batchnorm=processes.are_several and hardware.accelerator == "cuda",
        use_distributed_sampler=False,
        precision=hardware.precision,  # type: ignore[arg-type]
        max_epochs=options["max_epochs"],
        limit_train_batches=_limit(plan),
        limit_val_batches=options["limit_val_batches"],
        gradient_clip_val=options["gradient_clip_val"],
        accumulate_grad_batches=_parts(plan),
        logger=False if logger is None else logger,
        callbacks=_callbacks(plan, keeping),
        plugins=[
            AtomicCheckpoints(plan.folder.identity),
            *([processes.environment] if processes.environment is not None else []),
        ],
        profiler=profiler(dirpath=folder, filename="profile") if profiler else None,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def _callbacks(plan: Plan, keeping: list[Callback]) -> list[Callback]:
    folder, average = plan.folder.path, plan.average
    return [
        *([average] if average else []),
        *([OwnSignals()] if plan.processes.are_several else []),
        *keeping,
        EpochProgress(plan.pictures),
        WithinEpoch(folder, plan.checkpoint_every),
        *checkpoint_callbacks(folder, plan.pictures.has_val, is_average(average)),
    ]


def _has_batch_norm(module: Classifier) -> bool:
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def _parts(plan: Plan) -> int:
    """Parts in which the batch of an optimizer step goes through the network."""
    if not plan.module.optimizer.full_batch:
        return _parts_of_a_batch(plan.options)
    batches = plan.pictures.train_batches
    return min(batches, plan.options["limit_train_batches"] or batches)


def _limit(plan: Plan) -> int | None:
    """At most how many parts there are in an epoch, which are Lightning's batches."""
    limit: int | None = plan.options["limit_train_batches"]
    return limit * _parts_of_a_batch(plan.options) if limit and not plan.module.optimizer.full_batch else limit


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
