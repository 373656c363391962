"""Build a training from the configuration and the dataset, run it with Lightning, and describe the result.

`build_training` does no work yet, so that errors of the configuration appear first. `fit` starts from the newest
checkpoint of the run's directory. `training_metadata` returns what is saved as metadata.json next to the models.
"""

import logging
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PyTorchProfiler, SimpleProfiler
from omegaconf import DictConfig
from torch.nn.modules.batchnorm import _BatchNorm

from cifar_pipeline.config.compose import training_config
from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.models.build import NormalizedModel
from cifar_pipeline.models.pretrained import PretrainedWeights
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
)
from cifar_pipeline.training.distributed import (
    RestoreSignalHandler,
    RunPlan,
    connect_ranks,
)
from cifar_pipeline.training.hardware import RuntimeInfo, RuntimeReader, report_differences
from cifar_pipeline.training.loggers import KeyRecorder
from cifar_pipeline.training.losses import loss_to_build
from cifar_pipeline.training.module import Classifier
from cifar_pipeline.training.setup import TrainingSetup
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.process import Interrupted
from cifar_pipeline.utils.text import list_names, one_line

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
        if distributed.is_distributed and setup.hardware.accelerator == "cpu" and _trains_batch_norm(setup.module):
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
                raise UserError(f"{key}={metric}: nothing logs it{hint}; logged are {list_names(logged)}.")
    return used


def is_library_class(callback: Callback) -> bool:
    """Return whether a callback is Lightning's or ours, so that the metrics that it logs are known."""
    return type(callback).__module__.partition(".")[0] in ("lightning", "cifar_pipeline")


def _trains_batch_norm(module: Classifier) -> bool:
    """Return whether the statistics of a batch are used; those of frozen layers are fixed."""
    fine_tuning = module.fine_tuning
    is_frozen = fine_tuning.is_head_only or fine_tuning.freezes_batch_norm
    return not is_frozen and any(isinstance(layer, _BatchNorm) for layer in module.modules())


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


# Keys of `timing` that are measurements; the others name what it ran on, and become tags of the MLflow run.
MEASUREMENT_KEYS = ("seconds", "images_per_second")


def training_metadata(
    setup: TrainingSetup,
    result: TrainingResult,
    config: DictConfig,
    options: Mapping[str, str],
    dataset: Dataset,
    commit: str,
    weights: PretrainedWeights | None,
) -> dict[str, Any]:
    """Return the metadata saved with the models: config, data, meaning of the outputs, duration, runtime.

    Args:
        setup: the training.
        result: what `fit` returned.
        config: the composed configuration.
        options: the option chosen for each config group.
        dataset: the processed dataset.
        commit: the git commit of the code.
        weights: those that the training started from.
    """
    rows, values, model = result.rows, training_config(config), setup.module.net
    assert isinstance(model, NormalizedModel)
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
        "network": asdict(model.network_input),
        **({"weights": weights.record()} if weights else {}),
        "parameters": sum(parameter.numel() for parameter in setup.module.net.parameters()),
        "epochs": len(rows),
        "best_epoch": _best_epoch(setup, len(rows)),
        "checkpoints": setup.run_dir.checkpoints(),
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
    weights = metadata.get("weights", {})
    started_from = {"weights": weights["title"], "weights.sha256": weights["sha256"]} if weights else {}
    return runtime | stopped | started_from | {"experiment": str(metadata["choices"]["experiment"])}


def run_metrics(metadata: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a finished training as a whole: parameters of the network, seconds of the training."""
    return {"parameters": metadata["parameters"], "training_seconds": metadata["timing"]["seconds"]}


def _best_epoch(setup: TrainingSetup, epochs: int) -> int:
    """Return the epoch of the best checkpoint, counted from 1; the last epoch where there is none."""
    path = setup.run_dir.checkpoint(BEST)
    return int(read_checkpoint(path)["epoch"]) + 1 if path.is_file() else epochs
