"""Stage `train`: data/processed -> models/ and reports/history.csv, and a run in MLflow.

By hand it does exactly what the DVC stage does; with `-m` it is one job of a sweep and writes to the job's own folder.
"""

from pathlib import Path

from omegaconf import DictConfig

from cifar_pipeline.cli.stage_inputs import require_unchanged, watch
from cifar_pipeline.config.compose import available_cores, chosen_options, output_root, result_config
from cifar_pipeline.config.fingerprint import fingerprint
from cifar_pipeline.config.validation import check_targets
from cifar_pipeline.data.dataset import Dataset, require_matching_config
from cifar_pipeline.inference.onnx_export import OnnxTemplate, save_model
from cifar_pipeline.models.build import build_inference_model
from cifar_pipeline.sweeps.job import cached_objective, current_trial, require_validation_split
from cifar_pipeline.tracking import provenance
from cifar_pipeline.tracking.runs import run_name, training_run
from cifar_pipeline.training.callbacks import ResumableMLFlowLogger
from cifar_pipeline.training.compiled.engine import select_engine
from cifar_pipeline.training.distributed import detect_distributed, release_workers
from cifar_pipeline.training.hardware import select_accelerator, select_hardware
from cifar_pipeline.training.run_dir import RunDir
from cifar_pipeline.training.trainer import build_training, fit, micro_batch_size, run_tags, training_metadata
from cifar_pipeline.utils.atomic import require_writable
from cifar_pipeline.utils.console import info, status
from cifar_pipeline.utils.paths import runs_cache_dir
from cifar_pipeline.utils.process import disable_malloc_trim

PROCESSED = Path("data/processed")


def train(config: DictConfig) -> float | None:

    provenance.record_commit()

    disable_malloc_trim()
    check_targets(config)
    require_writable(output_root() / "models")
    require_writable(output_root() / "reports" / "history.csv", is_file=True)
    dataset = Dataset.open(PROCESSED)
    watch(str(PROCESSED), lambda: Dataset.open(PROCESSED).hash)
    dataset.verify()
    require_matching_config(dataset, config.data)
    trial = current_trial()
    accelerator, _ = select_accelerator(config.runtime.accelerator)
    processes = detect_distributed(config.trainer, accelerator, in_sweep=trial is not None)
    hardware = select_hardware(config.runtime, config.precision, available_cores(), micro_batch_size(config), processes)
    engine = select_engine(config, hardware, dataset.sizes["train"])
    if trial:
        require_validation_split(dataset.sizes["val"])
    if not trial or trial.number == 0:
        info(f"Data:   {dataset.caption}, {dataset.sizes['train']:,} images, {dataset.sizes['val']:,} more held back")
        info(f"Device: {hardware}; steps {engine}")

    this = fingerprint(config, dataset.hash)
    name, folder = run_name(chosen_options(), config.seed, trial), RunDir(runs_cache_dir() / this)
    plan = build_training(config, dataset, hardware, engine, folder, processes)
    if trial and (trial.rerun or not config.rerun) and (value := cached_objective(trial, this)) is not None:
        return value
    if not processes.is_rank_zero:
        fit(plan, logger=None)
        return None

    def graph() -> OnnxTemplate:
        status("Exporting the network")
        return OnnxTemplate.of(
            build_inference_model(plan.module.net, config, dataset), dataset.shape, config.loss.output_activation
        )

    # Before the training, so that hours of it don't end in a network that can't be exported.
    exported = None if folder.is_finished and not config.rerun else graph()
    data = {"name": dataset.name, "hash": dataset.hash, "source": dataset.source}
    status("Opening the run in MLflow")
    # The folder is held until its result is published: no other process may clear or replace it before.
    with folder.lock(config.rerun) as rerun:
        with training_run(this, name, result_config(config), data, rerun, trial) as run:
            logger = ResumableMLFlowLogger(run.tracking_uri, run.id, run.logged_epochs)
            if folder.is_finished and not rerun:
                info(f"This training ({name}) has finished before: its weights are taken. `rerun=true` trains again.")
                logger.log_rows(folder.rows())
                release_workers(processes, hardware.accelerator, this)
            else:
                exported = exported or graph()
                fitted = fit(plan, logger)
                status("Writing the models")
                facts = training_metadata(plan, fitted, config, chosen_options(), dataset, provenance.commit())
                with folder.write_result(facts, fitted.rows) as result:
                    for checkpoint in folder.checkpoints():
                        plan.module.load_checkpoint(folder.checkpoint(checkpoint))
                        deployed = build_inference_model(plan.module.net, config, dataset)
                        save_model(exported, deployed, facts, result / checkpoint)
                    require_unchanged()
            status("Putting the models on the run in MLflow")
            logger.send_kept()
            run.log_result(folder.result, run_tags(folder.facts()))
        require_unchanged()
        folder.copy_to(output_root(), {"id": run.id, "name": name})
        folder.prune(config.runtime.max_cached_runs)
        return folder.rows()[-1].get("val/accuracy")
