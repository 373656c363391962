"""Stage `evaluate`: models/ and the test part of data/processed -> reports/, and onto the run that `train` opened.

The only place where the test part is looked at, once per model.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from cifar_pipeline.commands.stage import run_stage

if TYPE_CHECKING:
    from cifar_pipeline.models.pixels import RawPixels

PROCESSED, MODELS, REPORTS = Path("data/processed"), Path("models"), Path("reports")


def evaluate(config: DictConfig) -> None:
    # Imported here, because `--cfg job`, completion and a refused value should answer at once.
    import time

    from cifar_pipeline.commands.unchanged import content_of, require_unchanged, watch
    from cifar_pipeline.config.start import cores
    from cifar_pipeline.console import doing, progress, say
    from cifar_pipeline.data.dataset import Dataset
    from cifar_pipeline.files import only_one, require_writable, whole_files
    from cifar_pipeline.inference.measured import answers_of
    from cifar_pipeline.inference.predictor import Predictor, threads_for
    from cifar_pipeline.inference.session import WEIGHTS
    from cifar_pipeline.inference.trained import Trained, first_convolution
    from cifar_pipeline.memory import keep_freed_memory
    from cifar_pipeline.reporting.answers import Answers

    start = time.perf_counter()
    keep_freed_memory()
    options, machine = config.evaluate, config.machine
    require_writable(REPORTS)
    dataset = Dataset.open(PROCESSED)
    watch(str(PROCESSED), lambda: Dataset.open(PROCESSED).hash)
    watch(str(MODELS), lambda: content_of(MODELS, REPORTS / "history.csv"))
    dataset.verify()
    # A training that ends meanwhile must not replace one part of its result before the other is read.
    with only_one(MODELS):
        trained = Trained.open(MODELS, options.checkpoint)
        trained.require(dataset)
        predictor = Predictor.open(trained.model, threads_for(machine.threads, cores()), machine.accelerator)
        weights = (trained.model / WEIGHTS).read_bytes()
        history = (REPORTS / "history.csv").read_text(encoding="utf-8", errors="replace")

    def network() -> "RawPixels":
        """The network with its weights, as our own code builds it."""
        from cifar_pipeline.inference.weights import load_weights
        from cifar_pipeline.training.networks import bare_network, build_deployed

        deployed = build_deployed(bare_network(config, dataset), config, dataset)
        load_weights(deployed, weights, trained.model / WEIGHTS)
        return deployed

    images, labels = dataset.part("test")
    with progress("Test images", len(images), transient=True) as advance:
        device, logits, probabilities = answers_of(
            predictor, images, options.batch_size, advance, machine.accelerator, network
        )
    answers = Answers(dataset.classes, labels, probabilities.argmax(1), probabilities.max(1))
    say(
        f"Test accuracy: {answers.right.mean():.2%} on {dataset.caption} ({trained.checkpoint} weights; measured on "
        f"{device})"
    )

    # What takes seconds to load comes after the number that was waited for.
    import torch

    from cifar_pipeline.inference.attribution import attributions
    from cifar_pipeline.inference.measured import require_equal
    from cifar_pipeline.inference.probabilities import by_name
    from cifar_pipeline.reporting.evaluation import write_figures, write_numbers
    from cifar_pipeline.reporting.evidence import Attributions
    from cifar_pipeline.reporting.history import read_history
    from cifar_pipeline.reporting.metrics import flatten, measure
    from cifar_pipeline.reporting.pages.report import Evaluation, write_report
    from cifar_pipeline.tracking.published import published
    from cifar_pipeline.tracking.runs import reopened_run

    truth = torch.from_numpy(labels)
    loss = trained.loss(torch.from_numpy(logits), truth)
    measured = measure(torch.from_numpy(probabilities), truth, loss, dataset.classes, options.calibration_bins)
    metrics = measured | {
        "parameters": trained.facts["parameters"],
        "checkpoint": trained.checkpoint,
        "dataset": dataset.summary(),
    }
    looked_into = answers.telling(options.attributions)
    model, way = network().eval(), by_name(trained.facts["probabilities"])
    require_equal(model, way, images[looked_into], probabilities[looked_into], trained.model)
    evaluation = Evaluation(
        run=trained.run,
        facts=trained.facts,
        metrics=metrics,
        caption=dataset.caption,
        answers=answers,
        images=images,
        history=read_history(history, str(REPORTS / "history.csv")),
        filters=first_convolution(model),
        attributions=Attributions(
            looked_into, attributions(model, way, images[looked_into], answers.predictions[looked_into], dataset.mean)
        ),
        published=published(),
    )
    doing("Drawing the figures and the report page")
    with whole_files(REPORTS) as part:
        written = write_figures(part, evaluation, options.mistakes)
        written.append(write_report(part / "report.html", evaluation, options.calibration_bins, options.mistakes))
        timing = {"train": trained.facts["timing"], "evaluate": {"seconds": round(time.perf_counter() - start, 2)}}
        written += write_numbers(part, metrics, timing, answers)
        require_unchanged()

    doing("Putting the results on the run in MLflow")
    with reopened_run(trained.run["id"], trained.run["name"]) as run:
        # The numbers per class are on the run as metrics.json: forty charts would hide the others.
        run.log_metrics(flatten({"test": measured["test"]}))
        run.log_files([REPORTS / path.name for path in written])
    say(f"Report:        {REPORTS / 'report.html'}")


if __name__ == "__main__":
    run_stage(evaluate)
