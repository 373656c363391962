"""Write the results of an evaluation into reports/: metrics for DVC, tables and figures."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.data.transforms import build_augmentation
from cifar_pipeline.models.network_input import NetworkInput
from cifar_pipeline.reporting.image_figures import AttributionMaps, contact_sheet, error_figure, first_layer_figure
from cifar_pipeline.reporting.metrics import Predictions
from cifar_pipeline.reporting.plots import confusion_figure, learning_curves
from cifar_pipeline.reporting.style import message_figure, save
from cifar_pipeline.reporting.tables import write_confusion, write_per_class, write_predictions
from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.text import escape_control_json, one_line


@dataclass(frozen=True)
class ReportOptions:
    """The values of conf/evaluation that decide what the tables, the figures and the report page show."""

    calibration_bins: int
    num_error_images: int
    many_classes: int
    num_confused_pairs: int
    num_listed_classes: int
    sample_seed: int

    def is_many(self, classes: Sequence[str]) -> bool:
        """Return whether there are too many classes to show all of them."""
        return len(classes) >= self.many_classes

    def choose_samples(self, classes: Sequence[str]) -> list[int]:
        """Choose the classes of samples.png: all, or with many classes a seeded choice; in class order."""
        if not self.is_many(classes):
            return list(range(len(classes)))
        count = min(self.num_listed_classes, len(classes))
        chosen = np.random.default_rng(self.sample_seed).choice(len(classes), count, replace=False)
        return [int(index) for index in np.sort(chosen)]


@dataclass(frozen=True)
class Measurement:
    """Predictions of a model for labelled images, as figures and pages show them.

    Attributes:
        per_class: precision, recall, f1 and support by class name.
        predictions: N predictions.
        images: `[N, H, W, C] uint8`, or an object that reads the images at an index or at an array of indices.
        options: what to show.
    """

    per_class: Mapping[str, Mapping[str, float]]
    predictions: Predictions
    images: np.ndarray
    options: ReportOptions

    @property
    def title(self) -> str:
        """Title of figures and pages: the model and the data."""
        raise NotImplementedError

    @property
    def has_many_classes(self) -> bool:
        """Return whether there are too many classes to show all of them."""
        return self.options.is_many(self.predictions.classes)

    def most_confused(self) -> Predictions:
        """Return the predictions whose confusion matrix is shown: with many classes, those of the most confused.

        The last class is then all others together.
        """
        if not self.has_many_classes:
            return self.predictions
        return self.predictions.grouped(self.predictions.confused_classes(self.options.num_confused_pairs))

    def confusion_figure(self) -> Figure:
        """Draw the confusion matrix; with many classes, that of the most confused ones."""
        shown, classes = self.most_confused(), self.predictions.classes
        if not self.has_many_classes:
            title = f"Confusion matrix: {self.title}"
        elif len(shown.classes) == 1:
            return message_figure(
                f"No errors: all {len(self.predictions.labels):,} images are classified correctly.",
                f"Confusion matrix: {self.title}",
            )
        else:
            title = f"The {len(shown.classes) - 1} most confused of {len(classes):,} classes: {self.title}"
        return confusion_figure(shown.labels, shown.predictions, shown.classes, title, self.has_many_classes)

    def error_figure(self) -> Figure:
        """Draw the most confident errors."""
        return error_figure(
            self.images,
            self.predictions.labels,
            self.predictions.predictions,
            self.predictions.confidence,
            self.predictions.classes,
            self.options.num_error_images,
            f"Most confident errors: {self.title}",
        )


@dataclass(frozen=True)
class Evaluation(Measurement):
    """Results of a model on the test split, as figures and the report page need them.

    Attributes:
        run: `id` and `name` of the MLflow run.
        metadata: content of models/metadata.json.
        checkpoint: the evaluated weights, `last` or `best`.
        dataset: content of dataset.json.
        metrics: content of metrics.json.
        caption: name of the data set.
        history: one row per epoch.
        filters: `[O, C, h, w]`, weights of the first layer; None if it is not a convolution.
        attributions: attribution maps of some of the images.
    """

    run: Mapping[str, str]
    metadata: Mapping[str, Any]
    checkpoint: str
    dataset: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Any]]
    caption: str
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
    # Only DVC's plot of the matrix needs this table; predictions.csv has all images and classes.
    shown = evaluation.most_confused()
    write_per_class(paths[2], evaluation.per_class)
    write_confusion(paths[3], shown.labels, shown.predictions, shown.classes)
    write_predictions(paths[4], labels, predicted, predictions.confidence, classes)
    return paths


def draw_samples(dataset: Dataset, metadata: Mapping[str, Any], options: ReportOptions) -> Figure:
    """Draw training images of each class, beside the augmented ones that the network was trained on.

    With many classes they are those of some of the classes, which the seed chooses.
    """
    network_input = NetworkInput.read(metadata, dataset.shape)
    transforms = metadata.get("recipe", {}).get("augmentation") or {}
    augmentation = build_augmentation(transforms, network_input.size, len(dataset.classes))
    images, labels = dataset.split("train")
    augment = augmentation.preview if augmentation.transforms else None
    chosen, title = options.choose_samples(dataset.classes), dataset.caption
    if len(chosen) < len(dataset.classes):
        title += f": {len(chosen)} of {len(dataset.classes):,} classes"
    return contact_sheet(images, labels, dataset.classes, title, augment=augment, shown=chosen)


Writer = Callable[[Path], object]


def figure_writers(evaluation: Evaluation, dataset: Dataset) -> dict[str, Writer]:
    """Return for each figure's file a function that draws and saves it, so that only one is in memory at a time."""

    def saved(draw: Callable[[], Figure]) -> Writer:
        return lambda path: save(draw(), path)

    title = evaluation.title
    filters = np.zeros((0, 3, 1, 1)) if evaluation.filters is None else evaluation.filters
    return {
        "learning_curves.png": saved(
            lambda: learning_curves(evaluation.history, f"Learning curves: {title}", *evaluation.monitor)
        ),
        "confusion.png": saved(evaluation.confusion_figure),
        "mistakes.png": saved(evaluation.error_figure),
        "filters.png": saved(lambda: first_layer_figure(filters, f"First layer: {title}")),
        "samples.png": saved(lambda: draw_samples(dataset, evaluation.metadata, evaluation.options)),
    }


def write_each(writers: Mapping[Path, Writer], title: str) -> dict[Path, Exception]:
    """Write each file with its function, and return the errors: a figure that fails must not cost the numbers.

    The file of a function that fails says so, because an older figure of that name would belong to another result.

    Raises:
        OSError: a file cannot be written.
    """
    failed: dict[Path, Exception] = {}
    for path, write in writers.items():
        try:
            write(path)
        except OSError:
            raise
        except Exception as error:
            failed[path] = error
            reason = f"{path.name} could not be made: {type(error).__name__} {one_line(error)[:60]}"
            if path.suffix == ".png":
                save(message_figure(reason, title), path)
            else:
                path.write_text(f"<!DOCTYPE html>\n<meta charset=utf-8>\n<p>{escape(reason)}</p>\n", encoding="utf-8")
    return failed
