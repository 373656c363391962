"""Train the model, export it and log it: data/processed -> models/, reports/history.csv and a run in MLflow.

Started by hand or by DVC, it does the same; with `-m` it is one job of a sweep and writes to the job's folder.
"""

import logging
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from cifar_pipeline.cli.entrypoint import is_started_by_dvc, require_unchanged, watch
from cifar_pipeline.config.compose import available_cores, chosen_options, fingerprint, output_root, stage_config
from cifar_pipeline.config.validation import check_targets
from cifar_pipeline.data.dataset import Dataset, require_matching_config
from cifar_pipeline.inference.graph_cache import GraphCache
from cifar_pipeline.inference.onnx_export import OnnxTemplate, save_model
from cifar_pipeline.models.build import build_inference_model, build_untrained_model
from cifar_pipeline.models.pretrained import PretrainedWeights, load_pretrained
from cifar_pipeline.sweeps.job import (
    cached_objective,
    current_study,
    current_trial,
    objective,
    require_validation_split,
)
from cifar_pipeline.tracking import provenance
from cifar_pipeline.tracking.model_uri import resolve_model
from cifar_pipeline.tracking.runs import fail_stale_run, require_own_run, run_name, training_run
from cifar_pipeline.tracking.trial import Trial
from cifar_pipeline.training.checkpoints import RunDir, reports_history
from cifar_pipeline.training.compiled.engine import select_engine
from cifar_pipeline.training.distributed import SINGLE_PROCESS, detect_distributed, launch_ranks
from cifar_pipeline.training.finetuning import describe_model
from cifar_pipeline.training.hardware import select_accelerator, select_hardware
from cifar_pipeline.training.loggers import ResumableMLFlowLogger, build_loggers, close_loggers, log_rows
from cifar_pipeline.training.setup import (
    TrainingSetup,
    build_callbacks,
    build_training,
    find_batch_callback,
    micro_batch_size,
)
from cifar_pipeline.training.trainer import (
    TrainingResult,
    dev_run,
    find_monitors,
    fit,
    release_ranks,
    run_metrics,
    run_tags,
    training_metadata,
)
from cifar_pipeline.training.tuning import resolve_batch_size
from cifar_pipeline.utils.atomic import require_writable
from cifar_pipeline.utils.console import propagate_library_logs, status
from cifar_pipeline.utils.errors import RESUME_HINT, EnvironmentFailure, UserError
from cifar_pipeline.utils.paths import runs_cache_dir
from cifar_pipeline.utils.process import disable_malloc_trim

log = logging.getLogger(__name__)

PROCESSED = Path("data/processed")


@dataclass(frozen=True)
class Plan:
    """A training before it starts: all that is known without training.

    Args:
        config: with a number as the batch size.
        dataset: the processed dataset.
        weights: pretrained weights to start from.
        trial: of a sweep.
        name: of the run in MLflow.
        setup: everything that `fit` needs.
        has_auto_batch: whether the batch size was searched.
    """

    config: DictConfig
    dataset: Dataset
    weights: PretrainedWeights | None
    trial: Trial | None
    name: str
    setup: TrainingSetup
    has_auto_batch: bool

    @property
    def run_dir(self) -> RunDir:
        """The folder of the checkpoints and of the result."""
        return self.setup.run_dir

    @property
    def needs_training(self) -> bool:
        """Whether there is no result yet, or another one is wanted."""
        return not self.run_dir.is_finished or bool(self.config.rerun)


def train(config: DictConfig) -> float | None:
    """Return the monitored metric of a trial's checkpoint that would be evaluated; None outside a sweep."""
    propagate_library_logs()
    disable_malloc_trim()
    check_targets(config)
    require_writable(output_root() / "models")
    require_writable(reports_history(output_root()), is_file=True)
    dataset = open_dataset(config)
    watch(str(dataset.folder), lambda: Dataset.open(dataset.folder).hash)
    plan = plan_training(config, dataset)
    config, setup, trial, run_dir = plan.config, plan.setup, plan.trial, plan.run_dir
    processes = setup.distributed
    if config.trainer.fast_dev_run:
        require_plain_start(trial is not None)
    if (
        trial
        and processes.environment is None  # a rank's trial was looked up by the process that launched it
        and (trial.rerun or not config.rerun)
        and (value := cached_objective(trial, run_dir.fingerprint, config)) is not None
    ):
        return value
    if processes.needs_launch:
        launch(plan)
        return objective(run_dir.rows(), config) if trial else None
    if config.trainer.fast_dev_run:
        dev_run(setup)
        log.info("trainer.fast_dev_run: training and validation ran without an error; nothing was logged or saved.")
        return None
    if not processes.is_rank_zero:
        fit(setup)
        return None
    run_training(plan)
    return objective(run_dir.rows(), config) if trial else None


def launch(plan: Plan) -> None:
    """Train in several processes: this command line once per rank, or in a sweep its trial.

    Raises SystemExit with the code of a rank that failed; in a sweep EnvironmentFailure, or what `rank_command` raises.
    """
    code = 1
    try:
        if plan.trial:
            from cifar_pipeline.sweeps.trial_ranks import rank_command

            with rank_command() as arguments:
                code = launch_ranks(plan.setup.distributed, arguments)
        else:
            code = launch_ranks(plan.setup.distributed, sys.argv)
    finally:
        if code:
            fail_stale_run(plan.run_dir.fingerprint)
    if code and plan.trial:  # the other trials go on
        raise EnvironmentFailure(f"A rank ended with code {code}, which stopped the training; {RESUME_HINT}.")
    if code:
        sys.exit(code)


def open_dataset(config: DictConfig) -> Dataset:
    """Open and verify data/processed; for a trial with other values of `data`, the dataset made with those."""
    if trial := current_trial():
        # Imported here: only trials need what reads raw files.
        from cifar_pipeline.sweeps.datasets import open_trial_dataset

        return open_trial_dataset(config, trial.overrides)
    dataset = Dataset.open(PROCESSED)
    dataset.verify()
    require_matching_config(dataset, config.data)
    return dataset


def plan_training(config: DictConfig, dataset: Dataset) -> Plan:
    """Choose the hardware and the engine, read pretrained weights, and build the training.

    Raises UserError for whatever the training would fail on.
    """
    trial = current_trial()
    weights = load_pretrained(config.model, resolve_model)
    accelerator, _ = select_accelerator(config.runtime.accelerator)
    processes = detect_distributed(config.trainer, accelerator)
    has_auto_batch = config.trainer.batch_size == "auto"
    config = resolve_batch_size(config, dataset, accelerator, processes, weights)
    run_fingerprint = fingerprint(config, dataset.hash, weights_hash=weights.sha256 if weights else "")
    log.debug(f"Fingerprint of the training: {run_fingerprint}")
    require_own_run(run_fingerprint, config.rerun, trial)
    name, run_dir = run_name(chosen_options(), config.seed, trial), RunDir(runs_cache_dir() / run_fingerprint)
    run_dir.drop_damaged_result()
    if processes.needs_launch and run_dir.is_finished and not config.rerun:
        processes = SINGLE_PROCESS
    network = partial(build_untrained_model, config, dataset, weights)
    hardware = select_hardware(
        config.runtime,
        config.precision,
        available_cores(),
        micro_batch_size(config),
        processes,
        network,
        run_dir.resumed_threads(),
    )
    callbacks = build_callbacks(config.callbacks)
    batch_callback = find_batch_callback(config.callbacks, callbacks)
    engine = select_engine(config, hardware, dataset.sizes["train"], batch_callback)
    if trial:
        require_validation_split(dataset.sizes["val"], config.monitor)
    setup = build_training(config, dataset, hardware, engine, run_dir, processes, callbacks, weights)
    find_monitors(setup)  # Raises before there is a run.
    if current_study():
        from cifar_pipeline.sweeps.pruning import observe_trial  # imports Optuna

        setup = observe_trial(setup)
    has_own_data = dataset.folder != PROCESSED
    if not processes.needs_launch and (not trial or trial.number == 0 or has_own_data):
        train_size, val_size = dataset.sizes["train"], dataset.sizes["val"]
        fold = "" if config.data.fold is None else f", fold {config.data.fold} of {config.data.folds}"
        log.info(f"Data:   {dataset.caption}{fold}, {train_size:,} training images, {val_size:,} for validation")
    if not processes.needs_launch and (not trial or trial.number == 0):
        if weights or setup.module.fine_tuning.is_partial:
            log.info(f"Model:  {describe_model(setup.module.net, setup.module.fine_tuning, config, weights)}")
        if transforms := setup.datamodule.augmentation.transforms:
            mixed = "; train/accuracy counts the label with the largest share"
            names = ", ".join(transform.name for transform in transforms)
            log.info(f"Augmentation: {names}{mixed if setup.datamodule.augmentation.mixes_labels else ''}")
        log.info(f"Device: {setup.hardware}; engine: {engine}")
    return Plan(config, dataset, weights, trial, name, setup, has_auto_batch)


def run_training(plan: Plan) -> None:
    """Train where there is no result yet, log it to MLflow, and copy it to models/ and reports/history.csv."""
    config, setup, trial, run_dir, dataset = plan.config, plan.setup, plan.trial, plan.run_dir, plan.dataset
    # Exported before the training: a model that cannot be exported fails now, not after hours.
    exported = export(plan) if plan.needs_training else None
    identity = {"name": dataset.name, "hash": dataset.hash, "source": dataset.source}
    data = {**identity, "shape": dataset.shape, "sizes": dataset.sizes, "classes": len(dataset.classes)}
    labels = provenance.configured_tags(config.mlflow)
    status("Opening the run in MLflow")
    # Locked until the result is published, so that no other process prunes or replaces it.
    with run_dir.lock(config.rerun) as rerun:
        values = stage_config(config, "train")
        name = "-".join(filter(None, [plan.name, run_dir.fingerprint[:8], rerun[:8]]))
        loggers = build_loggers(config.logger, name, values)
        with (
            training_run(run_dir.fingerprint, plan.name, values, data, rerun, trial, labels) as run,
            close_loggers(loggers),
        ):
            logger = ResumableMLFlowLogger(run.tracking_uri, run.id)
            if run_dir.is_finished and not rerun:
                log.info(
                    f"This training ({plan.name}) has already finished: its weights are reused. `rerun=true` trains "
                    "again."
                )
                log_rows([logger, *loggers], run_dir.rows())
                release_ranks(setup)
            else:
                exported = exported or export(plan)
                if plan.has_auto_batch:
                    run.tag({"trainer.batch_size": "auto"})
                run_dir.record_threads(setup.hardware.threads)
                with run.system_metrics(config.mlflow.log_system_metrics):
                    result = fit(setup, [logger, *loggers])
                write_result(plan, result, exported)
            status("Uploading the models to MLflow")
            logger.flush_pending()
            metadata = run_dir.metadata()
            run.log_result(run_dir.result, run_tags(metadata), run_metrics(metadata))
        require_unchanged()
        run_dir.copy_to(output_root(), {"id": run.id, "name": plan.name})
        run_dir.prune(config.runtime.max_cached_runs)


def export(plan: Plan) -> OnnxTemplate:
    """Export the model with the weights that it has now. Raises UserError if it cannot be exported."""
    status("Exporting the model")
    return OnnxTemplate.of(
        build_inference_model(plan.setup.module.net, plan.config),
        plan.dataset.shape,
        plan.config.loss.output_activation,
        GraphCache(plan.config.runtime.max_cached_graphs),
    )


def write_result(plan: Plan, result: TrainingResult, exported: OnnxTemplate) -> None:
    """Write the models of the last and the best checkpoint, metadata and history to the folder of the result."""
    status("Writing the models")
    setup, run_dir = plan.setup, plan.run_dir
    metadata = training_metadata(
        setup, result, plan.config, chosen_options(), plan.dataset, provenance.commit(), plan.weights
    )
    with run_dir.write_result(metadata, result.rows) as result_dir:
        for checkpoint in run_dir.checkpoints():
            setup.module.load_checkpoint(run_dir.checkpoint(checkpoint))
            model = build_inference_model(setup.module.net, plan.config)
            save_model(exported, model, metadata, result_dir / checkpoint)
        require_unchanged()


def require_plain_start(in_sweep: bool) -> None:
    """Raise UserError if DVC or a sweep wants a model, which trainer.fast_dev_run does not make."""
    if in_sweep or is_started_by_dvc("train"):
        raise UserError(
            "trainer.fast_dev_run makes no model, which this needs: type `python src/train.py "
            "trainer.fast_dev_run=true`, or choose experiment=debug, which takes a few batches and makes a model."
        )
