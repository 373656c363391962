"""Train the model, export it and log it: data/processed -> models/, reports/history.csv and a run in MLflow.

Started by hand or by DVC, it does the same; with `-m` it is one job of a sweep and writes to the job's folder.
"""

import logging
import sys
from pathlib import Path

from omegaconf import DictConfig

from cifar_pipeline.cli.entrypoint import is_started_by_dvc, require_unchanged, watch
from cifar_pipeline.config.compose import available_cores, chosen_options, fingerprint, output_root, stage_config
from cifar_pipeline.config.validation import check_targets
from cifar_pipeline.data.dataset import Dataset, require_matching_config
from cifar_pipeline.inference.onnx_export import OnnxTemplate, save_model
from cifar_pipeline.models.build import build_inference_model
from cifar_pipeline.sweeps.job import cached_objective, current_trial, objective, require_validation_split
from cifar_pipeline.tracking import provenance
from cifar_pipeline.tracking.runs import fail_stale_run, require_own_run, run_name, training_run
from cifar_pipeline.training.checkpoints import RunDir, reports_history
from cifar_pipeline.training.compiled.engine import select_engine
from cifar_pipeline.training.distributed import SINGLE_PROCESS, detect_distributed, launch_ranks
from cifar_pipeline.training.hardware import select_accelerator, select_hardware
from cifar_pipeline.training.loggers import ResumableMLFlowLogger, build_loggers, close_loggers, log_rows
from cifar_pipeline.training.trainer import (
    build_callbacks,
    build_training,
    dev_run,
    find_batch_callback,
    find_monitors,
    fit,
    micro_batch_size,
    release_ranks,
    run_tags,
    training_metadata,
)
from cifar_pipeline.training.tuning import resolve_batch_size
from cifar_pipeline.utils.atomic import require_writable
from cifar_pipeline.utils.console import propagate_library_logs, status
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.paths import runs_cache_dir
from cifar_pipeline.utils.process import disable_malloc_trim

log = logging.getLogger(__name__)

PROCESSED = Path("data/processed")


def train(config: DictConfig) -> float | None:
    """Return the monitored metric of a trial's checkpoint that would be evaluated; None outside a sweep."""
    propagate_library_logs()
    disable_malloc_trim()
    check_targets(config)
    require_writable(output_root() / "models")
    require_writable(reports_history(output_root()), is_file=True)
    dataset = Dataset.open(PROCESSED)
    watch(str(PROCESSED), lambda: Dataset.open(PROCESSED).hash)
    dataset.verify()
    require_matching_config(dataset, config.data)
    trial = current_trial()
    accelerator, _ = select_accelerator(config.runtime.accelerator)
    processes = detect_distributed(config.trainer, accelerator, in_sweep=trial is not None)
    has_auto_batch = config.trainer.batch_size == "auto"
    config = resolve_batch_size(config, dataset, accelerator, processes)
    run_fingerprint = fingerprint(config, dataset.hash)
    log.debug(f"Fingerprint of the training: {run_fingerprint}")
    require_own_run(run_fingerprint, config.rerun, trial)
    name, run_dir = run_name(chosen_options(), config.seed, trial), RunDir(runs_cache_dir() / run_fingerprint)
    if processes.needs_launch and run_dir.is_finished and not config.rerun:
        processes = SINGLE_PROCESS
    hardware = select_hardware(config.runtime, config.precision, available_cores(), micro_batch_size(config), processes)
    callbacks = build_callbacks(config.callbacks)
    batch_callback = find_batch_callback(config.callbacks, callbacks)
    engine = select_engine(config, hardware, dataset.sizes["train"], batch_callback)
    if trial:
        require_validation_split(dataset.sizes["val"], config.monitor)
    setup = build_training(config, dataset, hardware, engine, run_dir, processes, callbacks)
    find_monitors(setup)  # Raises before there is a run.
    if processes.needs_launch:
        if code := launch_ranks(processes):
            fail_stale_run(run_fingerprint)
            sys.exit(code)
        return None
    if not trial or trial.number == 0:
        train_size, val_size = dataset.sizes["train"], dataset.sizes["val"]
        log.info(f"Data:   {dataset.caption}, {train_size:,} training images, {val_size:,} for validation")
        log.info(f"Device: {hardware}; engine: {engine}")

    if config.trainer.fast_dev_run:
        require_plain_start(trial is not None)
        dev_run(setup)
        log.info("trainer.fast_dev_run: training and validation ran without an error; nothing was logged or saved.")
        return None
    if (
        trial
        and (trial.rerun or not config.rerun)
        and (value := cached_objective(trial, run_fingerprint, config)) is not None
    ):
        return value
    if not processes.is_rank_zero:
        fit(setup)
        return None

    def export() -> OnnxTemplate:
        status("Exporting the model")
        return OnnxTemplate.of(
            build_inference_model(setup.module.net, config, dataset), dataset.shape, config.loss.output_activation
        )

    # Exported before the training: a model that cannot be exported fails now, not after hours.
    exported = None if run_dir.is_finished and not config.rerun else export()
    identity = {"name": dataset.name, "hash": dataset.hash, "source": dataset.source}
    data = {**identity, "shape": dataset.shape, "sizes": dataset.sizes, "classes": len(dataset.classes)}
    labels = provenance.configured_tags(config.mlflow)
    status("Opening the run in MLflow")
    # Locked until the result is published, so that no other process prunes or replaces it.
    with run_dir.lock(config.rerun) as rerun:
        values = stage_config(config, "train")
        loggers = build_loggers(config.logger, "-".join(filter(None, [name, run_fingerprint[:8], rerun[:8]])), values)
        with training_run(run_fingerprint, name, values, data, rerun, trial, labels) as run, close_loggers(loggers):
            logger = ResumableMLFlowLogger(run.tracking_uri, run.id)
            if run_dir.is_finished and not rerun:
                log.info(
                    f"This training ({name}) has already finished: its weights are reused. `rerun=true` trains again."
                )
                log_rows([logger, *loggers], run_dir.rows())
                release_ranks(setup)
            else:
                exported = exported or export()
                if has_auto_batch:
                    run.tag({"trainer.batch_size": "auto"})
                with run.system_metrics(config.mlflow.log_system_metrics):
                    result = fit(setup, [logger, *loggers])
                status("Writing the models")
                metadata = training_metadata(setup, result, config, chosen_options(), dataset, provenance.commit())
                with run_dir.write_result(metadata, result.rows) as result_dir:
                    for checkpoint in run_dir.checkpoints():
                        setup.module.load_checkpoint(run_dir.checkpoint(checkpoint))
                        model = build_inference_model(setup.module.net, config, dataset)
                        save_model(exported, model, metadata, result_dir / checkpoint)
                    require_unchanged()
            status("Uploading the models to MLflow")
            logger.flush_pending()
            run.log_result(run_dir.result, run_tags(run_dir.metadata()))
        require_unchanged()
        run_dir.copy_to(output_root(), {"id": run.id, "name": name})
        run_dir.prune(config.runtime.max_cached_runs)
        return objective(run_dir.rows(), config) if trial else None


def require_plain_start(in_sweep: bool) -> None:
    """Raise UserError if DVC or a sweep wants a model, which trainer.fast_dev_run does not make."""
    if in_sweep or is_started_by_dvc("train"):
        raise UserError(
            "trainer.fast_dev_run makes no model, which this needs: type `python src/train.py "
            "trainer.fast_dev_run=true`, or choose experiment=debug, which takes a few batches and makes a model."
        )
