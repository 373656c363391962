"""Evaluate the model on the test split: models/, data/processed -> reports/ and the MLflow run of the training.

Nothing else uses the test split.
"""

import logging
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from cifar_pipeline.cli.entrypoint import require_unchanged, watch
from cifar_pipeline.config.compose import available_cores
from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.inference.predictor import Predictor, compute_outputs, threads_for
from cifar_pipeline.inference.trained_model import TrainedModel, first_conv_weights, read_model_file
from cifar_pipeline.models.network_input import NetworkInput
from cifar_pipeline.reporting.metrics import Predictions
from cifar_pipeline.tracking.provenance import reject_foreign_run
from cifar_pipeline.utils.atomic import atomic_update_dir, exclusive_lock, require_writable
from cifar_pipeline.utils.console import progress_bar, propagate_library_logs, status
from cifar_pipeline.utils.file_hashes import hash_content
from cifar_pipeline.utils.paths import WEIGHTS_FILE
from cifar_pipeline.utils.process import disable_malloc_trim
from cifar_pipeline.utils.text import flatten_dict

if TYPE_CHECKING:
    from cifar_pipeline.models.build import NormalizedModel

log = logging.getLogger(__name__)

PROCESSED, MODELS, REPORTS = Path("data/processed"), Path("models"), Path("reports")


def evaluate(config: DictConfig) -> None:
    disable_malloc_trim()
    options, runtime = config.evaluation, config.runtime
    require_writable(REPORTS)
    dataset = Dataset.open(PROCESSED)
    watch(str(PROCESSED), lambda: Dataset.open(PROCESSED).hash)
    watch(str(MODELS), lambda: hash_content(MODELS))
    dataset.verify()
    # Locked, so that a training that ends now does not replace models/ between two reads.
    with exclusive_lock(MODELS):
        trained = TrainedModel.open(MODELS, options.checkpoint)
        trained.require_same_dataset(dataset)
        reject_foreign_run(trained.run["id"])
        predictor = Predictor.open(trained.model, threads_for(runtime.threads, available_cores()), runtime.accelerator)
        weights = read_model_file(trained.model / WEIGHTS_FILE)
        # Not that in reports/, which may be of a later training that has not finished.
        history = read_model_file(MODELS / "history.csv").decode(errors="replace")

    def build_model() -> "NormalizedModel":
        """Build the model from the configuration and load its weights."""
        import torch

        from cifar_pipeline.models.build import build_bare_model, build_inference_model, load_weights

        network_input = NetworkInput.read(trained.metadata, dataset.shape)
        model = build_inference_model(build_bare_model(config, dataset, network_input), config)
        load_weights(model, weights, trained.model / WEIGHTS_FILE)
        # Gradients of convolutions are faster in this layout: 1.5 times for EfficientNet-Lite0 on a CPU.
        return model.to(memory_format=torch.channels_last)

    images, labels = dataset.split("test")
    with progress_bar("Test images", len(images), transient=True) as advance:
        device, logits, probabilities = compute_outputs(
            predictor, images, options.batch_size, advance, runtime.accelerator, build_model
        )
    predictions = Predictions(dataset.classes, labels, probabilities.argmax(1), probabilities.max(1))
    accuracy = predictions.correct.mean()
    log.info(f"Test accuracy: {accuracy:.2%} on {dataset.caption} ({trained.checkpoint} weights; measured on {device})")

    # Slow imports come after the accuracy is printed.
    import torch

    from cifar_pipeline.inference.predictor import require_same_outputs
    from cifar_pipeline.inference.torch_model import attributions
    from cifar_pipeline.models.build import get_activation
    from cifar_pipeline.reporting.evaluation import (
        Evaluation,
        ReportOptions,
        figure_writers,
        write_each,
        write_numbers,
    )
    from cifar_pipeline.reporting.html_report import write_report
    from cifar_pipeline.reporting.image_figures import AttributionMaps
    from cifar_pipeline.reporting.metrics import compute_metrics, finite_metrics, training_metrics
    from cifar_pipeline.reporting.tables import read_history
    from cifar_pipeline.tracking.runs import resume_run

    propagate_library_logs()
    targets = torch.from_numpy(labels)
    loss = trained.loss(torch.from_numpy(logits), targets)
    measured = compute_metrics(
        torch.from_numpy(probabilities), targets, loss, dataset.classes, options.calibration_bins
    )
    if config.metrics:
        from cifar_pipeline.training.metrics import build_metrics, compute_values  # imports torchmetrics

        chosen = build_metrics(config.metrics, len(dataset.classes))
        measured["test"] |= finite_metrics(compute_values(chosen, torch.from_numpy(probabilities), targets))
    table = read_history(history, str(MODELS / "history.csv"))
    explained = predictions.examples_to_explain(options.num_attributions)
    model, activation = build_model().eval(), get_activation(trained.metadata["output_activation"])
    require_same_outputs(model, activation, images[explained], probabilities[explained], trained.model)
    evaluation = Evaluation(
        run=trained.run,
        metadata=trained.metadata,
        checkpoint=trained.checkpoint,
        dataset=dataset.summary(),
        metrics={"test": measured["test"], **training_metrics(table, trained.metadata, trained.checkpoint)},
        per_class=measured["per_class"],
        caption=dataset.caption,
        predictions=predictions,
        images=images,
        history=table,
        filters=first_conv_weights(model),
        attributions=AttributionMaps(
            explained,
            attributions(model, activation, images[explained], predictions.predictions[explained], dataset.mean),
        ),
        options=ReportOptions(**{field.name: options[field.name] for field in fields(ReportOptions)}),
    )
    status("Drawing the figures and the report page")
    # Locked, because a training that runs meanwhile writes its epochs to reports/history.csv.
    title = evaluation.title
    with exclusive_lock(REPORTS), atomic_update_dir(REPORTS) as tmp:
        written = write_numbers(tmp, evaluation)
        writers = {tmp / name: write for name, write in figure_writers(evaluation, dataset).items()}
        failed = write_each({tmp / "report.html": partial(write_report, evaluation=evaluation), **writers}, title)
        written += [tmp / "report.html", *writers]
        require_unchanged()

    status("Uploading the results to MLflow")
    with resume_run(trained.run["id"], trained.run["name"]) as run:
        # The training has logged the others. Those per class are in per_class.csv: they would be dozens of charts.
        run.log_metrics(flatten_dict({"test": measured["test"]}, "/"))
        run.log_files([REPORTS / path.name for path in written])
    for path in failed:
        log.error(f"{REPORTS / path.name} could not be made; the numbers and all else are in {REPORTS}/ and in MLflow.")
    for error in failed.values():
        raise error
    log.info(f"Report:        {REPORTS / 'report.html'}")
