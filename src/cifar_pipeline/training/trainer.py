"""Build a training from the configuration and the dataset, run it with Lightning, and describe the result.

`build_training` does no work yet, so that errors of the configuration appear first. `fit` starts from the newest
checkpoint of the run's directory. `training_metadata` returns what is saved as metadata.json next to the models.
"""

import logging
import signal
from collections.abc import Callable, Mapping, Sequence
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

from cifar_pipeline.config.compose import output_root, training_config
from cifar_pipeline.config.validation import target_config
from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.models.build import build_model
from cifar_pipeline.training.callbacks import EpochHistory, EpochProgressBar
from cifar_pipeline.training.checkpoints import (
    BEST,
    AtomicCheckpointIO,
    EpochMetrics,
    RunDir,
    TimedCheckpoint,
    checkpoint_callbacks,
    find_resume_checkpoint,
    read_checkpoint,
    reports_history,
)
from cifar_pipeline.training.compiled.engine import EAGER, CompiledClassifier, Engine
from cifar_pipeline.training.datamodule import ImageDataModule
from cifar_pipeline.training.distributed import (
    SINGLE_PROCESS,
    DistributedContext,
    RestoreSignalHandler,
    RunPlan,
    connect_ranks,
)
from cifar_pipeline.training.hardware import Hardware, RuntimeInfo, RuntimeReader, report_differences
from cifar_pipeline.training.losses import build_loss, loss_to_build
from cifar_pipeline.training.module import Classifier, OptimizerConfig, Scheduler
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.process import Interrupted

log = logging.getLogger(__name__)

# simple: seconds spent in each Lightning hook. pytorch: each operator of a few steps, and a trace for a browser.
PROFILERS = {"simple": SimpleProfiler, "pytorch": PyTorchProfiler}


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that `fit` needs to run one training.

    Args:
        module: the model with its loss, optimizer and scheduler.
        datamodule: the batches.
        options: the values of conf/trainer.
        hardware: accelerator, threads and precision.
        run_dir: where checkpoints are written, and from which a training resumes.
        weight_averaging: callback whose average is validated and saved in place of the last weights, if any.
        distributed: the ranks that share each batch; all of them have the same setup.
        checkpoint_interval_seconds: seconds between two checkpoints within an epoch; None: only at an epoch's end.
        profiler: a key of `PROFILERS`; the profile is written next to the checkpoints.
        history_file: history.csv, which grows with each epoch; None: no file.
    """

    module: Classifier
    datamodule: ImageDataModule
    options: Mapping[str, Any]
    hardware: Hardware
    run_dir: RunDir
    weight_averaging: Callback | None = None
    distributed: DistributedContext = SINGLE_PROCESS
    checkpoint_interval_seconds: float | None = None
    profiler: str | None = None
    history_file: Path | None = None


@dataclass(frozen=True)
class TrainingResult:
    """A finished training.

    Args:
        rows: the metrics of each epoch.
        seconds: training time, summed over all processes that an interrupted training has had.
        runtime: the hardware and software it ran on (`hardware.RuntimeReader`).
    """

    rows: list[EpochMetrics]
    seconds: float
    runtime: RuntimeInfo


def fit(setup: TrainingSetup, logger: Logger | None, callbacks: Sequence[Callback] = ()) -> TrainingResult:
    """Train from the newest checkpoint to the last epoch. Each rank calls this, and only rank zero has a logger.

    Args:
        setup: the training.
        logger: where the metrics of each epoch are sent.
        callbacks: more callbacks of Lightning; they can monitor `train/loss`, `train/accuracy`, `val/loss` and
            `val/accuracy`, and log metrics of their own.

    Raises:
        Interrupted: SIGTERM or Ctrl-C stopped the training.
        EnvironmentFailure: another rank died.
        UserError: the loss became NaN or infinite (`Classifier.check_finite_loss`).
    """
    distributed, run_plan = setup.distributed, RunPlan(setup.run_dir.fingerprint)
    if distributed.is_rank_zero:
        checkpoint = find_resume_checkpoint(setup.run_dir.path, setup.module.state_dict(), setup.datamodule.chunk)
        run_plan = replace(run_plan, checkpoint=checkpoint)
        if distributed.is_distributed and setup.hardware.accelerator == "cpu" and _has_batch_norm(setup.module):
            log.warning(
                "On CPUs batch norm is not synchronized: each rank normalizes its own share of a batch, so the result "
                "differs from that of a single process."
            )
    history, runtime_reader = EpochHistory(setup.datamodule, setup.history_file), RuntimeReader()
    # EpochHistory comes behind the callbacks whose metrics it records.
    trainer = _trainer(setup, [*callbacks, history, runtime_reader], logger)
    with connect_ranks(distributed, trainer.strategy, run_plan) as run_plan:
        if not run_plan.is_needed:
            return TrainingResult([], 0.0, {})
        if run_plan.checkpoint:
            log.info(f"Resuming from checkpoint {run_plan.checkpoint}")
        _run(trainer, setup, run_plan.checkpoint)
    if setup.profiler and distributed.is_rank_zero:
        log.info(f"Profile: {', '.join(map(str, sorted(setup.run_dir.path.glob('fit-profile*'))))}")
    runtime = runtime_reader.runtime()
    if distributed.is_rank_zero:
        planned = setup.hardware.planned() | {"engine": "compiled" if setup.datamodule.chunk else "eager"}
        report_differences(planned, runtime)
    return TrainingResult(history.rows, runtime_reader.seconds, runtime)


def release_ranks(setup: TrainingSetup) -> None:
    """Let the other ranks end, because there is nothing to train. Only rank zero calls this."""
    if setup.distributed.is_distributed:
        run_plan = RunPlan(setup.run_dir.fingerprint, is_needed=False)
        with connect_ranks(setup.distributed, _trainer(setup, [], None).strategy, run_plan):
            pass


def _run(trainer: Trainer, setup: TrainingSetup, checkpoint: Path | None) -> None:
    try:
        trainer.fit(
            setup.module,
            datamodule=setup.datamodule,
            ckpt_path=str(checkpoint) if checkpoint else None,
            weights_only=True,
        )
    except (SystemExit, KeyboardInterrupt) as stop:
        # Lightning exits with a code of its own after Ctrl-C.
        number = signal.SIGTERM if isinstance(stop, Interrupted) else signal.SIGINT
        message = (
            f"Stopped in epoch {trainer.current_epoch + 1}; "
            "run the same command again to resume from the last checkpoint."
        )
        raise Interrupted(number, message) from None


def _trainer(setup: TrainingSetup, recorders: list[Callback], logger: Logger | None) -> Trainer:
    options, hardware, distributed, folder = setup.options, setup.hardware, setup.distributed, setup.run_dir.path
    profiler = PROFILERS[setup.profiler] if setup.profiler and distributed.is_rank_zero else None
    return Trainer(
        accelerator=hardware.accelerator,
        devices=distributed.local_world_size,
        num_nodes=distributed.num_nodes,
        strategy=distributed.strategy,
        sync_batchnorm=distributed.is_distributed and hardware.accelerator == "cuda",
        use_distributed_sampler=False,
        precision=hardware.precision,  # type: ignore[arg-type]
        max_epochs=options["max_epochs"],
        limit_train_batches=_limit_micro_batches(setup),
        limit_val_batches=options["limit_val_batches"],
        gradient_clip_val=options["gradient_clip_val"],
        accumulate_grad_batches=_grad_accum_steps(setup),
        logger=False if logger is None else logger,
        callbacks=_callbacks(setup, recorders),
        plugins=[
            AtomicCheckpointIO(setup.run_dir.fingerprint),
            *([distributed.environment] if distributed.environment is not None else []),
        ],
        profiler=profiler(dirpath=folder, filename="profile") if profiler else None,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def _callbacks(setup: TrainingSetup, recorders: list[Callback]) -> list[Callback]:
    folder, weight_averaging = setup.run_dir.path, setup.weight_averaging
    return [
        *([weight_averaging] if weight_averaging else []),
        *([RestoreSignalHandler()] if setup.distributed.is_distributed else []),
        *recorders,
        EpochProgressBar(setup.datamodule),
        TimedCheckpoint(folder, setup.checkpoint_interval_seconds),
        *checkpoint_callbacks(folder, setup.datamodule.has_val, weight_averaging is not None),
    ]


def _has_batch_norm(module: Classifier) -> bool:
    return any(isinstance(layer, _BatchNorm) for layer in module.modules())


def _grad_accum_steps(setup: TrainingSetup) -> int:
    """Micro-batches per optimizer step."""
    if not setup.module.optimizer.full_batch:
        return _micro_batches_per_step(setup.options)
    batches = setup.datamodule.batches_per_epoch
    return min(batches, setup.options["limit_train_batches"] or batches)


def _limit_micro_batches(setup: TrainingSetup) -> int | None:
    """Limit of micro-batches per epoch, which are what Lightning counts as batches; None: no limit."""
    limit: int | None = setup.options["limit_train_batches"]
    return limit * _micro_batches_per_step(setup.options) if limit and not setup.module.optimizer.full_batch else limit


def _micro_batches_per_step(options: Mapping[str, Any]) -> int:
    return max(1, int(options["batch_size"] // (options["micro_batch_size"] or options["batch_size"])))


def build_training(
    config: DictConfig,
    dataset: Dataset,
    hardware: Hardware,
    engine: Engine,
    run_dir: RunDir,
    distributed: DistributedContext,
) -> TrainingSetup:
    """Build the setup of a training: module, data module, callbacks.

    Raises what `build_module`, `build_datamodule` and `build_weight_averaging` raise.
    """
    return TrainingSetup(
        module=build_module(config, dataset, engine),
        datamodule=build_datamodule(config, dataset, engine),
        options=config.trainer,
        hardware=hardware,
        run_dir=run_dir,
        weight_averaging=build_weight_averaging(config),
        distributed=distributed,
        checkpoint_interval_seconds=config.runtime.checkpoint_interval_seconds,
        profiler=config.runtime.profiler,
        history_file=reports_history(output_root()),
    )


def build_module(config: DictConfig, dataset: Dataset, engine: Engine = EAGER) -> Classifier:
    """Build the Lightning module: model with weights initialized from the seed, loss, optimizer and scheduler."""
    seed_everything(config.seed, verbose=False)
    classifier: Callable[..., Classifier] = Classifier
    if engine.is_compiled:
        classifier = partial(
            CompiledClassifier, steps_per_block=engine.steps_per_block, steps_per_chunk=engine.steps_per_chunk
        )
    return classifier(
        build_model(config, dataset),
        build_loss(config.loss, dataset),
        build_optimizer_config(config.optimizer),
        build_scheduler(config),
        config.seed,
    )


def build_scheduler(config: DictConfig) -> Scheduler:
    """Build the function (step, total steps) -> learning rate factor.

    It is a plain partial, because each call of one made by Hydra takes a tenth of a millisecond.
    """
    values = target_config(config.scheduler, "scheduler")
    return partial(get_method(values.pop("_target_")), **{key: values[key] for key in values if key != "_partial_"})


def build_weight_averaging(config: DictConfig) -> Callback | None:
    """Build the callback of conf/weight_averaging; None for `weight_averaging=none`."""
    if config.weight_averaging._target_ is None:
        return None
    callback: Callback = instantiate(config.weight_averaging)
    return callback


def micro_batch_size(config: DictConfig) -> int:
    """Return how many images go through the model at once in training.

    Raises:
        UserError: `trainer.micro_batch_size` does not divide `trainer.batch_size`.
    """
    batch_size, micro_batch = config.trainer.batch_size, config.trainer.micro_batch_size
    if config.optimizer.get("full_batch"):
        return int(micro_batch or config.trainer.eval_batch_size)
    if micro_batch and batch_size > micro_batch and batch_size % micro_batch:
        raise UserError(
            f"trainer.micro_batch_size={micro_batch} does not divide trainer.batch_size={batch_size}: "
            "set it to a divisor or to null."
        )
    return int(min(micro_batch or batch_size, batch_size))


def build_datamodule(config: DictConfig, dataset: Dataset, engine: Engine = EAGER) -> ImageDataModule:
    """Build the data module; its batches are micro-batches where a step's batch is split, as a full batch always is."""
    batch_size = micro_batch_size(config)
    if config.optimizer.get("full_batch"):
        batch_size = min(batch_size, dataset.sizes["train"])
    chunk = engine.steps_per_chunk if engine.is_compiled else 0
    return ImageDataModule(
        dataset, batch_size, config.trainer.eval_batch_size, instantiate(config.augmentation), config.seed, chunk
    )


# Keys of `timing` that are measurements; the others name what it ran on, and become tags of the MLflow run.
MEASUREMENT_KEYS = ("seconds", "images_per_second")


def training_metadata(
    setup: TrainingSetup,
    result: TrainingResult,
    config: DictConfig,
    options: Mapping[str, str],
    dataset: Dataset,
    commit: str,
) -> dict[str, Any]:
    """Return the metadata saved with the models: config, data, meaning of the outputs, duration, runtime.

    Args:
        setup: the training.
        result: what `fit` returned.
        config: the composed configuration.
        options: the option chosen for each config group.
        dataset: the processed dataset.
        commit: the git commit of the code.
    """
    rows, values = result.rows, training_config(config)
    return {
        "fingerprint": setup.run_dir.fingerprint,
        "dataset": {"name": dataset.name, "hash": dataset.hash},
        "classes": list(dataset.classes),
        "shape": list(dataset.shape),
        "resize_mode": dataset.resize_mode,
        "output_activation": config.loss.output_activation,
        "loss": loss_to_build(config.loss, dataset),
        "choices": {key: option for key, option in options.items() if key in ("experiment", "data", *values)},
        "recipe": values,
        "parameters": sum(parameter.numel() for parameter in setup.module.net.parameters()),
        "epochs": len(rows),
        "best_epoch": _best_epoch(setup, len(rows)),
        "timing": {
            "seconds": round(result.seconds, 2),
            "images_per_second": round(sum(row["images_per_second"] for row in rows) / len(rows), 1),
            **result.runtime,
        },
        "commit": commit,
    }


def run_tags(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags by which a finished training's run can be filtered: its runtime and its experiment.

    They are those of the training itself, even if a later command with other threads, or from another experiment,
    reuses its result.
    """
    runtime = {key: str(value) for key, value in metadata["timing"].items() if key not in MEASUREMENT_KEYS}
    return runtime | {"experiment": str(metadata["choices"]["experiment"])}


def _best_epoch(setup: TrainingSetup, epochs: int) -> int:
    """Return the epoch of the best checkpoint, counted from 1; the last epoch where there is none."""
    path = setup.run_dir.checkpoint(BEST)
    return int(read_checkpoint(path)["epoch"]) + 1 if path.is_file() else epochs


def build_optimizer_config(options: Mapping[str, Any]) -> OptimizerConfig:
    """Split the options of conf/optimizer into the constructor's arguments and `full_batch`."""
    build = instantiate(target_config(options, "optimizer"), _convert_="all")
    return OptimizerConfig(build, bool(options.get("full_batch", False)))
