"""Stage `train`: data/processed -> models/ and reports/history.csv, and a run in MLflow.

By hand it does exactly what the DVC stage does; with `-m` it is one job of a sweep and writes to the job's own folder.
"""

from pathlib import Path

from omegaconf import DictConfig

from cifar_pipeline.commands.stage import run_stage
from cifar_pipeline.sweeps.job import surviving
from cifar_pipeline.sweeps.multirun import concluded

PROCESSED = Path("data/processed")


def train(config: DictConfig) -> float | None:
    from cifar_pipeline.tracking import lineage

    lineage.note()

    # Imported here, because `--cfg job`, completion and a refused value should answer at once.
    from cifar_pipeline.commands.unchanged import require_unchanged, watch
    from cifar_pipeline.config.compose import decisive
    from cifar_pipeline.config.identity import identity
    from cifar_pipeline.config.start import choices, cores, output_root
    from cifar_pipeline.config.targets import check_targets
    from cifar_pipeline.config.workspace import trainings_cache
    from cifar_pipeline.console import doing, say
    from cifar_pipeline.data.asked import require
    from cifar_pipeline.data.dataset import Dataset
    from cifar_pipeline.files import require_writable
    from cifar_pipeline.inference.export import export_model
    from cifar_pipeline.inference.graph import NetworkGraph
    from cifar_pipeline.memory import keep_freed_memory
    from cifar_pipeline.sweeps.job import current_point, finished_value, require_val
    from cifar_pipeline.tracking.runs import run_name, training_run
    from cifar_pipeline.training.build import build_plan, step_images
    from cifar_pipeline.training.engines.choice import choose_engine
    from cifar_pipeline.training.facts import run_tags, training_facts
    from cifar_pipeline.training.fit import fit
    from cifar_pipeline.training.folder import TrainingFolder
    from cifar_pipeline.training.hardware import choose_accelerator, choose_hardware
    from cifar_pipeline.training.logger import RunLogger
    from cifar_pipeline.training.networks import build_deployed
    from cifar_pipeline.training.processes import find_processes
    from cifar_pipeline.training.together import dismiss

    keep_freed_memory()
    check_targets(config)
    require_writable(output_root() / "models")
    require_writable(output_root() / "reports" / "history.csv", is_file=True)
    dataset = Dataset.open(PROCESSED)
    watch(str(PROCESSED), lambda: Dataset.open(PROCESSED).hash)
    dataset.verify()
    require(dataset, config.data)
    point = current_point()
    accelerator, _ = choose_accelerator(config.machine.accelerator)
    processes = find_processes(config.trainer, accelerator, in_sweep=point is not None)
    hardware = choose_hardware(config.machine, config.precision, cores(), step_images(config), processes)
    engine = choose_engine(config, hardware, dataset.sizes["train"])
    if point:
        require_val(dataset.sizes["val"])
    if not point or point.number == 0:
        say(f"Data:   {dataset.caption}, {dataset.sizes['train']:,} images, {dataset.sizes['val']:,} more held back")
        say(f"Device: {hardware}; steps {engine}")

    this = identity(config, dataset.hash)
    name, folder = run_name(choices(), config.seed, point), TrainingFolder(trainings_cache() / this)
    plan = build_plan(config, dataset, hardware, engine, folder, processes)
    if point and (point.rerun or not config.rerun) and (value := finished_value(point, this)) is not None:
        return value
    if not processes.is_first:
        fit(plan, logger=None)
        return None

    def graph() -> NetworkGraph:
        doing("Exporting the network")
        return NetworkGraph.of(
            build_deployed(plan.module.net, config, dataset), dataset.shape, config.loss.probabilities
        )

    # Before the training, so that hours of it don't end in a network that can't be exported.
    exported = None if folder.is_finished and not config.rerun else graph()
    data = {"name": dataset.name, "hash": dataset.hash, "source": dataset.source}
    doing("Opening the run in MLflow")
    # The folder is held until its result is published: no other process may clear or replace it before.
    with folder.held(config.rerun) as rerun:
        with training_run(this, name, decisive(config), data, rerun, point) as run:
            logger = RunLogger(run.tracking_uri, run.id, run.logged_epochs)
            if folder.is_finished and not rerun:
                say(f"This training ({name}) has finished before: its weights are taken. `rerun=true` trains again.")
                logger.log_rows(folder.rows())
                dismiss(processes, hardware.accelerator, this)
            else:
                exported = exported or graph()
                fitted = fit(plan, logger)
                doing("Writing the models")
                facts = training_facts(plan, fitted, config, choices(), dataset, lineage.commit())
                with folder.finishing(facts, fitted.rows) as result:
                    for checkpoint in folder.checkpoints():
                        plan.module.load_checkpoint(folder.checkpoint(checkpoint))
                        deployed = build_deployed(plan.module.net, config, dataset)
                        export_model(exported, deployed, facts, result / checkpoint)
                    require_unchanged()
            doing("Putting the models on the run in MLflow")
            logger.send_kept()
            run.log_result(folder.result, run_tags(folder.facts()))
        require_unchanged()
        folder.publish(output_root(), {"id": run.id, "name": name})
        folder.clear_others(config.machine.keep_trainings)
        return folder.rows()[-1].get("val/accuracy")


if __name__ == "__main__":
    concluded(lambda: run_stage(train, around=surviving))
