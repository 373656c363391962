"""Stage `evaluate`: models/ and the test part of data/processed -> reports/, and onto the run that `train` opened.

The only place where the test part is looked at, once per model.
"""

from pathlib import Path

from omegaconf import DictConfig

from cifar_pipeline.commands.stage import run_stage

PROCESSED, MODELS, REPORTS = Path("data/processed"), Path("models"), Path("reports")


def evaluate(config: DictConfig) -> None:
    # Imported here, because `--cfg job`, completion and a refused value should answer at once.
    import time
    from io import StringIO

    import torch

    from cifar_pipeline.commands.unchanged import content_of, require_unchanged, watch
    from cifar_pipeline.console import doing, progress, say
    from cifar_pipeline.data.dataset import Dataset
    from cifar_pipeline.files import only_one, require_writable, whole_files
    from cifar_pipeline.inference.batched import logits_of
    from cifar_pipeline.inference.export import load_model
    from cifar_pipeline.inference.probabilities import by_name
    from cifar_pipeline.inference.trained import Trained, first_convolution
    from cifar_pipeline.memory import keep_freed_memory
    from cifar_pipeline.reporting.answers import Answers

    start = time.perf_counter()
    keep_freed_memory()
    options = config.evaluate
    require_writable(REPORTS)
    dataset = Dataset.open(PROCESSED)
    watch(str(PROCESSED), lambda: Dataset.open(PROCESSED).hash)
    watch(str(MODELS), lambda: content_of(MODELS, REPORTS / "history.csv"))
    dataset.verify()
    # A training that ends meanwhile must not replace one part of its result before the other is read.
    with only_one(MODELS):
        trained = Trained.open(MODELS, options.checkpoint)
        trained.require(dataset)
        model = load_model(trained.model)
        history = (REPORTS / "history.csv").read_text(encoding="utf-8")

    images, labels = dataset.part("test")
    truth = torch.from_numpy(labels)
    way = by_name(trained.facts["probabilities"])
    with progress("Test images", len(images), transient=True) as advance:
        logits = logits_of(model, images, options.batch_size, advance)
    probabilities = way(logits)
    confidence, predictions = probabilities.max(1)
    answers = Answers(dataset.classes, labels, predictions.numpy(), confidence.numpy())
    say(f"Test accuracy: {answers.right.mean():.2%} on {dataset.caption} ({trained.checkpoint} weights)")

    # What takes seconds to load comes after the number that was waited for.
    from pandas import read_csv

    from cifar_pipeline.inference.attribution import attributions
    from cifar_pipeline.reporting.evaluation import write_figures, write_numbers
    from cifar_pipeline.reporting.evidence import Attributions
    from cifar_pipeline.reporting.metrics import flatten, measure
    from cifar_pipeline.reporting.pages.report import Evaluation, write_report
    from cifar_pipeline.tracking.published import published
    from cifar_pipeline.tracking.runs import reopened_run

    loss = trained.loss(logits, truth)
    measured = measure(probabilities, truth, loss, dataset.classes, options.calibration_bins)
    metrics = measured | {
        "parameters": trained.facts["parameters"],
        "checkpoint": trained.checkpoint,
        "dataset": dataset.summary(),
    }
    looked_into = answers.telling(options.attributions)
    evaluation = Evaluation(
        run=trained.run,
        facts=trained.facts,
        metrics=metrics,
        caption=dataset.caption,
        answers=answers,
        images=images,
        history=read_csv(StringIO(history)),
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
