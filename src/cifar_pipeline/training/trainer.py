"""Build a training from the configuration and the dataset, run it with Lightning, and describe the result.

`build_training` does no work yet, so that errors of the configuration appear first. `fit` starts from the newest
checkpoint of the run's directory. `training_metadata` returns what is saved as metadata.json next to the models.
"""

import logging
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra.utils import get_method, instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PyTorchProfiler, SimpleProfiler
from omegaconf import DictConfig
from torch.nn.modules.batchnorm import _BatchNorm

from cifar_pipeline.config.compose import output_root, training_config
from cifar_pipeline.config.validation import target_config
from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.models.build import build_model, get_activation
from cifar_pipeline.training.callbacks import (
    EpochHistory,
    EpochProgressBar,
    MetricReset,
    StepLossLogger,
    StopRecorder,
    stop_reason,
)
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
from cifar_pipeline.training.loggers import KeyRecorder
from cifar_pipeline.training.losses import build_loss, loss_to_build
from cifar_pipeline.training.metrics import build_metrics
from cifar_pipeline.training.module import Classifier, OptimizerConfig, Scheduler
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.process import Interrupted
from cifar_pipeline.utils.text import one_line

log = logging.getLogger(__name__)

# simple: seconds spent in each Lightning hook. pytorch: each operator of a few steps, and a trace for a browser.
PROFILERS = {"simple": SimpleProfiler, "pytorch": PyTorchProfiler}
# Keys of conf/trainer that are arguments of Lightning's Trainer by the same name and with the same meaning.
TRAINER_KEYS = (
    "max_epochs", "min_epochs", "max_steps", "min_steps", "max_time", "limit_val_batches", "overfit_batches",
    "fast_dev_run", "val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps", "gradient_clip_val",
    "gradient_clip_algorithm", "deterministic", "benchmark", "inference_mode", "detect_anomaly",
    "reload_dataloaders_every_n_epochs", "enable_autolog_hparams",
)  # fmt: skip
# Lightning's default, by which callbacks such as DeviceStatsMonitor go where runtime.log_every_n_steps is null.
LOG_EVERY_N_STEPS = 50


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
        callbacks: those of conf/callbacks, by name.
        monitor: the metric by which the best checkpoint is chosen.
        mode: whether larger or smaller values of it are better, `max` or `min`.
        log_every_n_steps: steps between two values of the training loss within an epoch; None: none.
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
    callbacks: Mapping[str, Callback] = field(default_factory=dict)
    monitor: str = "val/accuracy"
    mode: str = "max"
    log_every_n_steps: int | None = None

    @property
    def best_monitor(self) -> str | None:
        """The metric of the best checkpoint; None if it is one of validation and there is no validation split."""
        return None if self.monitor.startswith("val/") and not self.datamodule.has_val else self.monitor


@dataclass(frozen=True)
class TrainingResult:
    """A finished training.

    Args:
        rows: the metrics of each epoch.
        seconds: training time, summed over all processes that an interrupted training has had.
        runtime: the hardware and software it ran on (`hardware.RuntimeReader`).
        stopped: why it ended before trainer.max_epochs; empty if it did not.
    """

    rows: list[EpochMetrics]
    seconds: float
    runtime: RuntimeInfo
    stopped: str = ""


def fit(setup: TrainingSetup, loggers: Sequence[Logger] = ()) -> TrainingResult:
    """Train from the newest checkpoint to the last epoch. Each rank calls this, and only rank zero has loggers.

    Args:
        setup: the training.
        loggers: where the metrics are sent.

    Raises:
        Interrupted: SIGTERM or Ctrl-C stopped the training.
        EnvironmentFailure: another rank died.
        UserError: the loss became NaN or infinite (`Classifier.check_finite_loss`), nothing logs a monitored metric, or
            Lightning refuses the options.
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
    history = EpochHistory(setup.datamodule, setup.history_file, find_monitors(setup))
    runtime_reader = RuntimeReader()
    trainer = build_trainer(setup, _callbacks(setup, [history, runtime_reader]), loggers)
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
    if not history.rows:
        raise UserError("The training ended before its first batch: set trainer.max_time to more than 0.")
    stopped = stop_reason(trainer, len(history.rows))
    if stopped and distributed.is_rank_zero:
        log.info(f"Stopped at {stopped}")
    return TrainingResult(history.rows, runtime_reader.seconds, runtime, stopped)


def dev_run(setup: TrainingSetup) -> None:
    """Train and validate for trainer.fast_dev_run batches in a folder that is deleted. Raises what `fit` raises."""
    with TemporaryDirectory() as folder:
        run_dir = RunDir(Path(folder) / setup.run_dir.fingerprint)
        fit(replace(setup, run_dir=run_dir, history_file=None, checkpoint_interval_seconds=None, profiler=None))


def release_ranks(setup: TrainingSetup) -> None:
    """Let the other ranks end, because there is nothing to train. Only rank zero calls this."""
    if setup.distributed.is_distributed:
        run_plan = RunPlan(setup.run_dir.fingerprint, is_needed=False)
        with connect_ranks(setup.distributed, build_trainer(setup, _callbacks(setup, []), ()).strategy, run_plan):
            pass


def _run(trainer: Trainer, setup: TrainingSetup, checkpoint: Path | None) -> None:
    def message() -> str:
        epoch = trainer.current_epoch + 1
        return f"Stopped in epoch {epoch}; run the same command again to resume from the last checkpoint."

    with translate_errors(message):
        trainer.fit(
            setup.module,
            datamodule=setup.datamodule,
            ckpt_path=str(checkpoint) if checkpoint else None,
            weights_only=True,
        )


@contextmanager
def translate_errors(stop_message: Callable[[], str]) -> Iterator[None]:
    """Raise Interrupted for a signal, with a message, and UserError for options that Lightning refuses."""
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as stop:
        # Lightning exits with a code of its own after Ctrl-C.
        number = signal.SIGTERM if isinstance(stop, Interrupted) else signal.SIGINT
        raise Interrupted(number, stop_message()) from None
    except MisconfigurationException as error:
        raise UserError(f"Lightning: {one_line(error)}") from None


def build_trainer(setup: TrainingSetup, callbacks: list[Callback], loggers: Sequence[Logger]) -> Trainer:
    """Build Lightning's trainer of a setup. Raises UserError if Lightning refuses the options."""
    options, hardware, distributed, folder = setup.options, setup.hardware, setup.distributed, setup.run_dir.path
    profiler = PROFILERS[setup.profiler] if setup.profiler and distributed.is_rank_zero else None
    build = partial(
        Trainer,
        accelerator=hardware.accelerator,
        devices=distributed.local_world_size,
        num_nodes=distributed.num_nodes,
        strategy=distributed.strategy,
        sync_batchnorm=distributed.is_distributed and hardware.accelerator == "cuda",
        use_distributed_sampler=False,
        precision=hardware.precision,  # type: ignore[arg-type]
        limit_train_batches=_limit_micro_batches(setup),
        accumulate_grad_batches=_grad_accum_steps(setup),
        **{key: _plain(options[key]) for key in TRAINER_KEYS},
        log_every_n_steps=setup.log_every_n_steps or LOG_EVERY_N_STEPS,
        # The first one is `trainer.logger`.
        logger=[*loggers, KeyRecorder()],
        callbacks=callbacks,
        plugins=[
            AtomicCheckpointIO(setup.run_dir.fingerprint),
            *([distributed.environment] if distributed.environment is not None else []),
        ],
        profiler=profiler(dirpath=folder, filename="profile") if profiler else None,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    try:
        return build()
    except (MisconfigurationException, ImportError) as error:
        raise UserError(f"Lightning: {one_line(error)}") from None


def _plain(value: Any) -> Any:
    """Return a duration such as {minutes: 30} as a dict."""
    return dict(value) if isinstance(value, Mapping | DictConfig) else value


def _callbacks(setup: TrainingSetup, recorders: list[Callback]) -> list[Callback]:
    folder, weight_averaging, scheduler = setup.run_dir.path, setup.weight_averaging, setup.module.scheduler
    options = setup.options
    # As Lightning decides it for EarlyStopping.
    after_validation = options["val_check_interval"] != 1.0 or options["check_val_every_n_epoch"] != 1
    return [
        MetricReset(),
        *([weight_averaging] if weight_averaging else []),
        *([RestoreSignalHandler()] if setup.distributed.is_distributed else []),
        *setup.callbacks.values(),
        *([scheduler] if isinstance(scheduler, Callback) else []),
        *([StepLossLogger(setup.log_every_n_steps)] if setup.log_every_n_steps else []),
        StopRecorder(),
        # Behind the callbacks whose metrics they record.
        *recorders,
        EpochProgressBar(setup.datamodule),
        TimedCheckpoint(folder, setup.checkpoint_interval_seconds),
        *checkpoint_callbacks(
            folder,
            setup.best_monitor,
            setup.mode,
            after_validation=after_validation and setup.monitor.startswith("val/"),
            averaged=weight_averaging is not None,
        ),
    ]


def find_monitors(setup: TrainingSetup) -> dict[str, str]:
    """Return the metrics that others choose by, by configuration key.

    Raises UserError if nothing logs one of them, as far as that is known before the training.
    """
    monitors = {"monitor": setup.best_monitor}
    monitors |= {
        f"callbacks.{name}.monitor": getattr(callback, "monitor", None) for name, callback in setup.callbacks.items()
    }
    monitors |= {"scheduler.monitor": getattr(setup.module.scheduler, "monitor", None)}
    used = {key: metric for key, metric in monitors.items() if isinstance(metric, str)}
    logged = ["train/loss", "train/accuracy"]
    if setup.datamodule.has_val:
        logged += ["val/loss", "val/accuracy", *(f"val/{name}" for name in setup.module.val_metrics or ())]
    logged += [name for callback in setup.callbacks.values() for name in getattr(callback, "logged_metrics", ())]
    if all(is_library_class(callback) for callback in setup.callbacks.values()):
        for key, metric in used.items():
            if metric not in logged:
                hint = "" if setup.datamodule.has_val else " (data.val_fraction=0 leaves no validation split)"
                raise UserError(f"{key}={metric}: nothing logs it{hint}; logged are {', '.join(logged)}.")
    return used


def is_library_class(callback: Callback) -> bool:
    """Return whether a callback is Lightning's or ours, so that the metrics that it logs are known."""
    return type(callback).__module__.partition(".")[0] in ("lightning", "cifar_pipeline")


def _has_batch_norm(module: Classifier) -> bool:
    return any(isinstance(layer, _BatchNorm) for layer in module.modules())


def _grad_accum_steps(setup: TrainingSetup) -> int:
    """Micro-batches per optimizer step."""
    if not setup.module.optimizer.full_batch:
        return _micro_batches_per_step(setup.options)
    batches, limit = setup.datamodule.batches_per_epoch, setup.options["limit_train_batches"]
    return max(1, int(batches * limit)) if isinstance(limit, float) else min(batches, limit or batches)


def _limit_micro_batches(setup: TrainingSetup) -> int | float | None:
    """Limit of micro-batches per epoch, which are what Lightning counts as batches; None: no limit."""
    limit: int | float | None = setup.options["limit_train_batches"]
    if limit is None or isinstance(limit, float) or setup.module.optimizer.full_batch:
        return limit
    return limit * _micro_batches_per_step(setup.options)


def _micro_batches_per_step(options: Mapping[str, Any]) -> int:
    if options["micro_batch_size"] is None:
        return int(options["accumulate_grad_batches"])
    return max(1, int(options["batch_size"] // options["micro_batch_size"]))


def build_training(
    config: DictConfig,
    dataset: Dataset,
    hardware: Hardware,
    engine: Engine,
    run_dir: RunDir,
    distributed: DistributedContext,
    callbacks: Mapping[str, Callback],
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
        callbacks=callbacks,
        monitor=config.monitor,
        mode=config.mode,
        log_every_n_steps=config.runtime.log_every_n_steps,
    )


def build_callbacks(options: Mapping[str, Any]) -> dict[str, Callback]:
    """Build the callbacks of conf/callbacks, by name.

    Raises:
        UserError: one is no callback of Lightning, or two have the same key in a checkpoint.
    """
    callbacks: dict[str, Callback] = {}
    for name, node in options.items():
        callback = instantiate(target_config(node, f"callbacks.{name}"), _convert_="all")
        if not isinstance(callback, Callback):
            raise UserError(f"callbacks.{name}: {node['_target_']} is no lightning.pytorch.Callback.")
        for other, existing in callbacks.items():
            if existing.state_key == callback.state_key:
                raise UserError(
                    f"callbacks.{other} and callbacks.{name} are both {callback.state_key}, and a checkpoint can hold "
                    "the state of one of them only: leave one out, or give its class a state_key of its own."
                )
        callbacks[name] = callback
    return callbacks


# Hooks of Lightning's callbacks that are called for single batches.
BATCH_HOOKS = (
    "on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step",
)  # fmt: skip


def find_batch_callback(options: Mapping[str, Any], callbacks: Mapping[str, Callback]) -> str:
    """Return the name of a callback that needs single batches, which only the eager engine has; empty for none.

    A callback needs them if it overrides such a hook, or by the key `needs_single_batches` of its options.
    """
    for name, callback in callbacks.items():
        needs = options[name].get("needs_single_batches")
        overrides = any(getattr(type(callback), hook) is not getattr(Callback, hook) for hook in BATCH_HOOKS)
        if overrides if needs is None else needs:
            return name
    return ""


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
        build_metrics(config.metrics, len(dataset.classes)),
        get_activation(config.loss.output_activation),
    )


def build_scheduler(config: DictConfig) -> Scheduler:
    """Build the function (step, total steps) -> learning rate factor.

    It is a plain partial, because each call of one made by Hydra takes a tenth of a millisecond. An object
    may be a callback as well, which is called at each epoch's end.
    """
    values = target_config(config.scheduler, "scheduler")
    if not values.get("_partial_"):
        scheduler: Scheduler = instantiate(values, _convert_="all")
        return scheduler
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
        UserError: `trainer.micro_batch_size` does not divide `trainer.batch_size`, or gradients are accumulated twice.
    """
    batch_size, micro_batch = config.trainer.batch_size, config.trainer.micro_batch_size
    accumulated = config.trainer.accumulate_grad_batches
    if accumulated > 1 and (micro_batch or config.optimizer.get("full_batch")):
        other = f"trainer.micro_batch_size={micro_batch}" if micro_batch else "optimizer.full_batch"
        raise UserError(
            f"trainer.accumulate_grad_batches={accumulated} and {other} both accumulate gradients: set one."
        )
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
        dataset,
        batch_size,
        config.trainer.eval_batch_size,
        instantiate(config.augmentation),
        config.seed,
        chunk,
        shuffle=not config.trainer.overfit_batches,
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
        **({"stopped": result.stopped} if result.stopped else {}),
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
    stopped = {"stopped": metadata["stopped"]} if "stopped" in metadata else {}
    return runtime | stopped | {"experiment": str(metadata["choices"]["experiment"])}


def _best_epoch(setup: TrainingSetup, epochs: int) -> int:
    """Return the epoch of the best checkpoint, counted from 1; the last epoch where there is none."""
    path = setup.run_dir.checkpoint(BEST)
    return int(read_checkpoint(path)["epoch"]) + 1 if path.is_file() else epochs


def build_optimizer_config(options: Mapping[str, Any]) -> OptimizerConfig:
    """Split the options of conf/optimizer into the constructor's arguments and `full_batch`."""
    build = instantiate(target_config(options, "optimizer"), _convert_="all")
    return OptimizerConfig(build, bool(options.get("full_batch", False)))
