"""Write the results of an evaluation into reports/: metrics for DVC, tables and figures."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.data.transforms import build_augmentation
from cifar_pipeline.models.network_input import NetworkInput
from cifar_pipeline.reporting.image_figures import AttributionMaps, contact_sheet, error_figure, first_layer_figure
from cifar_pipeline.reporting.metrics import Predictions
from cifar_pipeline.reporting.plots import confusion_figure, learning_curves
from cifar_pipeline.reporting.style import save
from cifar_pipeline.reporting.tables import write_confusion, write_per_class, write_predictions
from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.text import escape_control_json


@dataclass(frozen=True)
class Evaluation:
    """Results of a model on the test split, as figures and the report page need them.

    Attributes:
        run: `id` and `name` of the MLflow run.
        metadata: content of models/metadata.json.
        checkpoint: the evaluated weights, `last` or `best`.
        dataset: content of dataset.json.
        metrics: content of metrics.json.
        per_class: precision, recall, f1 and support by class name.
        caption: name of the data set.
        predictions: N predictions of the test split.
        images: `[N, H, W, C] uint8`, the images of the test split.
        history: one row per epoch.
        filters: `[O, C, h, w]`, weights of the first layer; None if it is not a convolution.
        attributions: attribution maps of some of the images.
    """

    run: Mapping[str, str]
    metadata: Mapping[str, Any]
    checkpoint: str
    dataset: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Any]]
    per_class: Mapping[str, Mapping[str, float]]
    caption: str
    predictions: Predictions
    images: np.ndarray
    history: pd.DataFrame
    filters: np.ndarray | None
    attributions: AttributionMaps

    @property
    def title(self) -> str:
        """Title of figures and pages: the run and the data set."""
        return f"{self.run['name']} on {self.caption}"

    @property
    def monitor(self) -> tuple[str, str]:
        """Name and mode of the metric by which the best weights were chosen; empty if it was not recorded."""
        recipe = self.metadata.get("recipe", {})
        return str(recipe.get("monitor", "")), str(recipe.get("mode", ""))


def write_numbers(reports: Path, evaluation: Evaluation) -> list[Path]:
    """Write metrics.json, dataset.json, per_class.csv, confusion.csv and predictions.csv; return their paths."""
    names = ("metrics.json", "dataset.json", "per_class.csv", "confusion.csv", "predictions.csv")
    paths = [reports / name for name in names]
    for path, values in zip(paths, (evaluation.metrics, evaluation.dataset), strict=False):
        with atomic_write(path) as tmp:
            tmp.write_text(
                escape_control_json(json.dumps(values, indent=2, ensure_ascii=False)) + "\n", encoding="utf-8"
            )
    predictions = evaluation.predictions
    labels, predicted, classes = predictions.labels, predictions.predictions, predictions.classes
    write_per_class(paths[2], evaluation.per_class)
    write_confusion(paths[3], labels, predicted, classes)
    write_predictions(paths[4], labels, predicted, predictions.confidence, classes)
    return paths


def write_samples(reports: Path, dataset: Dataset, metadata: Mapping[str, Any]) -> Path:
    """Draw training images of each class, beside the augmented ones that the network was trained on."""
    network_input = NetworkInput.read(metadata, dataset.shape)
    transforms = metadata.get("recipe", {}).get("augmentation") or {}
    augmentation = build_augmentation(transforms, network_input.size, len(dataset.classes))
    images, labels = dataset.split("train")
    augment = augmentation.preview if augmentation.transforms else None
    save(contact_sheet(images, labels, dataset.classes, dataset.caption, augment=augment), reports / "samples.png")
    return reports / "samples.png"


def write_figures(reports: Path, evaluation: Evaluation, num_error_images: int) -> list[Path]:
    """Draw the learning curves, the confusion matrix, the most confident errors and the filters; return their paths."""
    title, predictions = evaluation.title, evaluation.predictions
    labels, predicted, classes = predictions.labels, predictions.predictions, predictions.classes
    filters = np.zeros((0, 3, 1, 1)) if evaluation.filters is None else evaluation.filters
    figures = {
        "learning_curves.png": learning_curves(evaluation.history, f"Learning curves: {title}", *evaluation.monitor),
        "confusion.png": confusion_figure(labels, predicted, classes, f"Confusion matrix: {title}"),
        "mistakes.png": error_figure(
            evaluation.images,
            labels,
            predicted,
            predictions.confidence,
            classes,
            num_error_images,
            f"Most confident errors: {title}",
        ),
        "filters.png": first_layer_figure(filters, f"First layer: {title}"),
    }
    for name, figure in figures.items():
        save(figure, reports / name)
    return [reports / name for name in figures]
