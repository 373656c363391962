"""One training, from its first step or its last checkpoint to its end.

From the configuration and the data set to what Lightning trains, before any work is done.

What is worth knowing about a finished training, as it is written beside its models.
"""

import logging
import signal
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import get_method, instantiate
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PyTorchProfiler, SimpleProfiler
from omegaconf import DictConfig
from torch.nn.modules.batchnorm import _BatchNorm

from cifar_pipeline.config.compose import result_config
from cifar_pipeline.config.fingerprint import FINGERPRINT_KEYS
from cifar_pipeline.config.validation import target_config
from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.models.build import build_model
from cifar_pipeline.training.callbacks import EpochHistory, EpochMetrics, EpochProgressBar
from cifar_pipeline.training.checkpoints import (
    BEST,
    AtomicCheckpointIO,
    TimedCheckpoint,
    checkpoint_callbacks,
    find_resume_checkpoint,
    read_checkpoint,
)
from cifar_pipeline.training.compiled.engine import EAGER, CompiledClassifier, Engine
from cifar_pipeline.training.datamodule import ImageDataModule
from cifar_pipeline.training.distributed import (
    SINGLE_PROCESS,
    DistributedContext,
    RestoreSignalHandler,
    RunPlan,
    distributed_session,
)
from cifar_pipeline.training.hardware import Facts, Hardware, RuntimeReader, report_differences
from cifar_pipeline.training.losses import build_loss, loss_to_build
from cifar_pipeline.training.module import Classifier, Scheduler
from cifar_pipeline.training.optimizers import build_optimizer_config
from cifar_pipeline.training.run_dir import RunDir
from cifar_pipeline.utils.console import info, warning
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.process import Interrupted

# simple: seconds in each of Lightning's own calls. pytorch: each operator of a few steps, and a trace for a browser.
PROFILERS = {"simple": SimpleProfiler, "pytorch": PyTorchProfiler}


@dataclass(frozen=True)
class TrainingSetup:
    """A training before its first step.

    Args:
        module: what is trained.
        images: on what.
        options: the values of conf/trainer.
        hardware: on which machine.
        folder: where checkpoints go, and from where it goes on.
        average: what is validated and kept in place of the last weights (`average.py`); None: they themselves.
        processes: those that share the batches; each has the same plan.
        checkpoint_interval_seconds: seconds between two checkpoints within an epoch; None: only at its end.
        profiler: one of `PROFILERS`; where the time went is then told in a file beside the checkpoints.
    """

    module: Classifier
    datamodule: ImageDataModule
    options: Mapping[str, Any]
    hardware: Hardware
    folder: RunDir
    weight_averaging: Callback | None = None
    processes: DistributedContext = SINGLE_PROCESS
    checkpoint_interval_seconds: float | None = None
    profiler: str | None = None


@dataclass(frozen=True)
class TrainingResult:
    """A finished training: a row per epoch, the seconds spent in all its processes, and on what it ran."""

    rows: list[EpochMetrics]
    seconds: float
    ran: Facts


def fit(plan: TrainingSetup, logger: Logger | None) -> TrainingResult:
    """Train as planned, from the newest checkpoint on. Of several processes each calls this, the first with a logger.

    Raises `Interrupted` when it was stopped, `Fault` when another process was, and what `Classifier` raises.
    """
    _silence_lightning()
    processes, accelerator, fingerprint = plan.processes, plan.hardware.accelerator, plan.folder.fingerprint
    start = None
    if processes.is_rank_zero:
        start = RunPlan(
            fingerprint, find_resume_checkpoint(plan.folder.path, plan.module.state_dict(), plan.datamodule.chunk)
        )
        if processes.is_distributed and accelerator == "cpu" and _has_batch_norm(plan.module):
            warning("On a CPU each process normalises its own share of a batch: the result is not that of one process.")
    with distributed_session(processes, accelerator, fingerprint, start) as (processes, start):
        if not start.is_needed:
            return TrainingResult([], 0.0, {})
        if start.checkpoint:
            info(f"Going on from the checkpoint {start.checkpoint}")
        epochs, ran = EpochHistory(), RuntimeReader()
        trainer = _trainer(replace(plan, processes=processes), [epochs, ran], logger)
        _run(trainer, plan, start.checkpoint)
    if plan.profiler and processes.is_rank_zero:
        info(f"Profile: {', '.join(map(str, sorted(plan.folder.path.glob('fit-profile*'))))}")
    found = ran.facts()
    if processes.is_rank_zero:
        planned = plan.hardware.planned() | {"engine": "compiled" if plan.datamodule.chunk else "eager"}
        report_differences(planned, found)
    return TrainingResult(epochs.rows, ran.seconds, found)


def _run(trainer: Trainer, plan: TrainingSetup, checkpoint: Path | None) -> None:
    """Train, from this checkpoint on."""
    try:
        trainer.fit(
            plan.module,
            datamodule=plan.datamodule,
            ckpt_path=str(checkpoint) if checkpoint else None,
            weights_only=True,
        )
    except (SystemExit, KeyboardInterrupt) as stop:
        # Lightning ends with an exit code of its own after Ctrl-C.
        number = signal.SIGTERM if isinstance(stop, Interrupted) else signal.SIGINT
        line = f"Stopped in epoch {trainer.current_epoch + 1}: the same command goes on from the last checkpoint."
        raise Interrupted(number, line) from None


def _trainer(plan: TrainingSetup, keeping: list[Callback], logger: Logger | None) -> Trainer:
    """Lightning's trainer, with the callbacks that keep what happens, and a logger."""
    options, hardware, processes, folder = plan.options, plan.hardware, plan.processes, plan.folder.path
    profiler = PROFILERS[plan.profiler] if plan.profiler and processes.is_rank_zero else None
    return Trainer(
        accelerator=hardware.accelerator,
        devices=processes.local_world_size,
        num_nodes=processes.num_nodes,
        strategy=processes.strategy,
        sync_batchnorm=processes.is_distributed and hardware.accelerator == "cuda",
        use_distributed_sampler=False,
        precision=hardware.precision,  # type: ignore[arg-type]
        max_epochs=options["max_epochs"],
        limit_train_batches=_limit_micro_batches(plan),
        limit_val_batches=options["limit_val_batches"],
        gradient_clip_val=options["gradient_clip_val"],
        accumulate_grad_batches=_grad_accum_steps(plan),
        logger=False if logger is None else logger,
        callbacks=_callbacks(plan, keeping),
        plugins=[
            AtomicCheckpointIO(plan.folder.fingerprint),
            *([processes.environment] if processes.environment is not None else []),
        ],
        profiler=profiler(dirpath=folder, filename="profile") if profiler else None,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def _callbacks(plan: TrainingSetup, keeping: list[Callback]) -> list[Callback]:
    folder, average = plan.folder.path, plan.weight_averaging
    return [
        *([average] if average else []),
        *([RestoreSignalHandler()] if plan.processes.is_distributed else []),
        *keeping,
        EpochProgressBar(plan.datamodule),
        TimedCheckpoint(folder, plan.checkpoint_interval_seconds),
        *checkpoint_callbacks(folder, plan.datamodule.has_val, average is not None),
    ]


def _has_batch_norm(module: Classifier) -> bool:
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def _grad_accum_steps(plan: TrainingSetup) -> int:
    """Parts in which the batch of an optimizer step goes through the network."""
    if not plan.module.optimizer.full_batch:
        return _micro_batches_per_step(plan.options)
    batches = plan.datamodule.train_batches
    return min(batches, plan.options["limit_train_batches"] or batches)


def _limit_micro_batches(plan: TrainingSetup) -> int | None:
    """At most how many parts there are in an epoch, which are Lightning's batches."""
    limit: int | None = plan.options["limit_train_batches"]
    return limit * _micro_batches_per_step(plan.options) if limit and not plan.module.optimizer.full_batch else limit


def _micro_batches_per_step(options: Mapping[str, Any]) -> int:
    return max(1, int(options["batch_size"] // (options["micro_batch_size"] or options["batch_size"])))


def _silence_lightning() -> None:
    """Drop what Lightning says about itself and what nobody here can act on."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*isinstance\\(treespec, LeafSpec\\).*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*is smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*Total length of `list` across ranks is zero.*")
    # What is logged was made the same on all processes before.
    warnings.filterwarnings("ignore", ".*It is recommended to use `self.log.*sync_dist=True.*")


def build_training(
    config: DictConfig,
    dataset: Dataset,
    hardware: Hardware,
    engine: Engine,
    folder: RunDir,
    processes: DistributedContext,
) -> TrainingSetup:
    """All that the training needs."""
    return TrainingSetup(
        module=build_module(config, dataset, engine),
        datamodule=build_datamodule(config, dataset, engine),
        options=config.trainer,
        hardware=hardware,
        folder=folder,
        weight_averaging=build_weight_averaging(config),
        processes=processes,
        checkpoint_interval_seconds=config.runtime.checkpoint_interval_seconds,
        profiler=config.runtime.profiler,
    )


def build_module(config: DictConfig, dataset: Dataset, engine: Engine = EAGER) -> Classifier:
    """The network with new weights that follow from the seed, its loss, optimizer and schedule."""
    seed_everything(config.seed, verbose=False)
    kind: Callable[..., Classifier] = Classifier
    if engine.is_compiled:
        kind = partial(
            CompiledClassifier, steps_per_block=engine.steps_per_block, steps_per_chunk=engine.steps_per_chunk
        )
    return kind(
        build_model(config, dataset),
        build_loss(config.loss, dataset),
        build_optimizer_config(config.optimizer),
        build_scheduler(config),
        config.seed,
    )


def build_scheduler(config: DictConfig) -> Scheduler:
    """The function (step, all steps) -> factor, bare: what Hydra makes takes a tenth of a millisecond a call."""
    values = target_config(config.scheduler, "scheduler")
    return partial(get_method(values.pop("_target_")), **{key: values[key] for key in values if key != "_partial_"})


def build_weight_averaging(config: DictConfig) -> Callback | None:
    """Lightning's callback that keeps the average of the weights that conf/weight_averaging chose, if it chose one."""
    if config.weight_averaging._target_ is None:
        return None
    average: Callback = instantiate(config.weight_averaging)
    return average


def micro_batch_size(config: DictConfig) -> int:
    """How many images go through the network at once in training: a batch, or a part of it.

    Raises `Refusal` where a batch has no whole number of parts.
    """
    batch_size, part = config.trainer.batch_size, config.trainer.micro_batch_size
    if config.optimizer.get("full_batch"):
        return int(part or config.trainer.eval_batch_size)
    if part and batch_size > part and batch_size % part:
        raise UserError(
            f"trainer.micro_batch_size={part} does not divide trainer.batch_size={batch_size}: write one that does, or "
            "null."
        )
    return int(min(part or batch_size, batch_size))


def build_datamodule(config: DictConfig, dataset: Dataset, engine: Engine = EAGER) -> ImageDataModule:
    """The batches: of the size that conf/trainer says or, for a full batch, in parts that fit into memory."""
    batch_size = micro_batch_size(config)
    if config.optimizer.get("full_batch"):
        batch_size = min(batch_size, dataset.sizes["train"])
    chunk = engine.steps_per_chunk if engine.is_compiled else 0
    return ImageDataModule(
        dataset, batch_size, config.trainer.eval_batch_size, instantiate(config.augmentation), config.seed, chunk
    )


# What of the timing is a measurement, and not what was measured on.
RUN_TAG_KEYS = ("seconds", "images_per_second")


def training_metadata(
    plan: TrainingSetup,
    fitted: TrainingResult,
    config: DictConfig,
    chosen: Mapping[str, str],
    dataset: Dataset,
    commit: str,
) -> dict[str, Any]:
    """Facts for whoever uses the models: what went in, what the outputs mean, how long it took on what.

    `chosen` is the option of each group, `commit` that of the code.
    """
    rows, values = fitted.rows, result_config(config)
    return {
        "fingerprint": plan.folder.fingerprint,
        "dataset": {"name": dataset.name, "hash": dataset.hash},
        "classes": list(dataset.classes),
        "shape": list(dataset.shape),
        "resize_mode": dataset.resize_mode,
        "output_activation": config.loss.output_activation,
        "loss": loss_to_build(config.loss, dataset),
        "choices": {key: option for key, option in chosen.items() if key in ("experiment", "data", *FINGERPRINT_KEYS)},
        "recipe": {key: values[key] for key in FINGERPRINT_KEYS},
        "parameters": sum(parameter.numel() for parameter in plan.module.net.parameters()),
        "epochs": len(rows),
        "best_epoch": _best_epoch(plan, len(rows)),
        "timing": {
            "seconds": round(fitted.seconds, 2),
            "images_per_second": round(sum(row["images_per_second"] for row in rows) / len(rows), 1),
            **fitted.ran,
        },
        "commit": commit,
    }


def run_tags(facts: Mapping[str, Any]) -> dict[str, str]:
    """Those of a finished training's facts that its run can be filtered by.

    They are its own, also where a later command with other threads, or by another experiment's name, takes its result.
    """
    ran = {key: str(value) for key, value in facts["timing"].items() if key not in RUN_TAG_KEYS}
    return ran | {"experiment": str(facts["choices"]["experiment"])}


def _best_epoch(plan: TrainingSetup, epochs: int) -> int:
    """The epoch, counted from 1, that the best weights are from, as their file says; without any, the last."""
    path = plan.folder.checkpoint(BEST)
    return int(read_checkpoint(path)["epoch"]) + 1 if path.is_file() else epochs
