"""Measure a model on labeled images that need not be its own data, and write the results into a folder.

Classes are matched by name. Images of a class that the model does not know are left out of the metrics, and their
predictions are counted separately; classes of the model without images have no metrics.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from cifar_pipeline.reporting.evaluation import Measurement, ReportOptions, Writer, write_each
from cifar_pipeline.reporting.html import percent, render
from cifar_pipeline.reporting.html_report import (
    Rows,
    calibration_section,
    class_tables,
    confusion_table,
    error_cards,
)
from cifar_pipeline.reporting.metric_names import chosen_metrics
from cifar_pipeline.reporting.metrics import Predictions, compute_metrics, reliability, wilson_interval
from cifar_pipeline.reporting.style import save
from cifar_pipeline.reporting.tables import write_confusion, write_per_class, write_table
from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.text import compose_characters, escape_control_json, list_names

METRICS_FILE, REPORT_FILE, PREDICTIONS_FILE = "metrics.json", "report.html", "predictions.csv"
PER_CLASS_FILE, CONFUSION_FILE = "per_class.csv", "confusion.csv"
CONFUSION_FIGURE, ERROR_FIGURE = "confusion.png", "mistakes.png"
EVALUATION_FILES = (
    METRICS_FILE, REPORT_FILE, PREDICTIONS_FILE, PER_CLASS_FILE, CONFUSION_FILE, CONFUSION_FIGURE, ERROR_FIGURE,
)  # fmt: skip
PER_CLASS_KEYS = ("precision", "recall", "f1")
# Predicted classes that the page lists for each unknown class.
MAX_PREDICTED = 3
UNKNOWN = -1

# Metrics that a user chose, of probabilities `[N, K]` and labels `[N]`.
ChosenMetrics = Callable[[np.ndarray, np.ndarray], Mapping[str, float]]


def match_classes(names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Return the model's class index of each name, `[N] int64`; UNKNOWN where it has no class of this name.

    The same text in another Unicode spelling, or with other white space, is the same name; another case is not.
    """
    indices: dict[str, int] = {}
    for index, name in enumerate(classes):
        indices.setdefault(normalized_name(name), index)
    found = {name: indices.get(normalized_name(name), UNKNOWN) for name in set(names)}
    return np.array([found[name] for name in names], np.int64)


def normalized_name(name: str) -> str:
    """Return the spelling of a class name in which two names of the same class are equal."""
    return " ".join(compose_characters(name).split())


@dataclass(frozen=True)
class ModelOutputs:
    """Outputs of a model for N labeled images.

    Attributes:
        address: of the model, as the user wrote it.
        classes: K names, in the order of the outputs.
        names: N class names of the images.
        paths: N paths or numbers of the images.
        probabilities: `[N, K] float32`.
        images: as the model sees them; indexed like an array `[N, H, W, C] uint8`.
        facts: what identifies the model, for metrics.json.
    """

    address: str
    classes: tuple[str, ...]
    names: Sequence[str]
    paths: Sequence[str]
    probabilities: np.ndarray
    images: Any
    facts: Mapping[str, str]

    @cached_property
    def labels(self) -> np.ndarray:
        """The class indices of the images, `[N] int64`; UNKNOWN for a class that the model does not know."""
        return match_classes(self.names, self.classes)

    @cached_property
    def is_known(self) -> np.ndarray:
        """Mask of the images of a class that the model knows, `[N] bool`."""
        return np.asarray(self.labels != UNKNOWN)

    @cached_property
    def predicted(self) -> np.ndarray:
        """The predicted class indices, `[N] int64`."""
        return np.asarray(self.probabilities.argmax(1))

    @cached_property
    def confidence(self) -> np.ndarray:
        """The probabilities of the predictions, `[N] float32`."""
        return np.asarray(self.probabilities.max(1))

    @property
    def correct(self) -> np.ndarray:
        """Mask of the correct predictions, `[N] bool`."""
        return np.asarray(self.labels == self.predicted)

    @cached_property
    def absent_classes(self) -> tuple[str, ...]:
        """The classes of the model without images."""
        present = set(self.labels.tolist())
        return tuple(name for index, name in enumerate(self.classes) if index not in present)

    def metrics(self, mask: np.ndarray, bins: int, chosen: ChosenMetrics) -> dict[str, Any]:
        """Compute the metrics of the images in `mask` (`[N] bool`): `test` by name, and `per_class` by class.

        The precision, recall and F1 of a class without images are None.
        """
        import torch  # here, because `predict` needs other modules of this package without it

        probabilities, labels = self.probabilities[mask], self.labels[mask]
        measured = compute_metrics(torch.from_numpy(probabilities), torch.from_numpy(labels), 0.0, self.classes, bins)
        test = {name: value for name, value in measured["test"].items() if name != "loss"}
        if len(self.classes) <= 3:
            del test["top3_accuracy"]  # it is 1
        per_class = {
            name: values if values["support"] else {**values, **dict.fromkeys(PER_CLASS_KEYS)}
            for name, values in measured["per_class"].items()
        }
        return {"test": test | dict(chosen(probabilities, labels)), "per_class": per_class}

    def unknown_classes(self) -> dict[str, Counter[str]]:
        """Count the predictions for the images of each class that the model does not know."""
        counts: dict[str, Counter[str]] = {}
        for index in np.flatnonzero(~self.is_known).tolist():
            counts.setdefault(self.names[index], Counter())[self.classes[self.predicted[index]]] += 1
        return dict(sorted(counts.items()))


@dataclass(frozen=True)
class ModelEvaluation(Measurement):
    """Results of a model on labeled images.

    Attributes:
        outputs: for all images, also of unknown classes.
        metrics: by name.
        data_title: name of the data.
        model_rows, data_rows: (name, value) of the model and of the data, for the page.
        data: what identifies the data, for metrics.json.
    """

    outputs: ModelOutputs
    metrics: Mapping[str, float]
    data_title: str
    model_rows: Rows
    data_rows: Rows
    data: Mapping[str, Any]

    @staticmethod
    def of(
        outputs: ModelOutputs,
        options: ReportOptions,
        chosen: ChosenMetrics,
        data_title: str,
        model_rows: Rows,
        data_rows: Rows,
        data: Mapping[str, Any],
    ) -> "ModelEvaluation":
        """Compute the metrics of the images whose class the model knows."""
        known = outputs.is_known
        measured = outputs.metrics(known, options.calibration_bins, chosen)
        predictions = Predictions(
            outputs.classes, outputs.labels[known], outputs.predicted[known], outputs.confidence[known]
        )
        return ModelEvaluation(
            measured["per_class"],
            predictions,
            Subset(outputs.images, np.flatnonzero(known)),  # type: ignore[arg-type]
            options,
            outputs,
            measured["test"],
            data_title,
            model_rows,
            data_rows,
            data,
        )

    @property
    def title(self) -> str:
        """Title of figures and pages: the model and the data."""
        return f"{self.outputs.address} on {self.data_title}"

    @property
    def num_images(self) -> int:
        """The number of images that the metrics are of."""
        return len(self.predictions.labels)

    @property
    def num_correct(self) -> int:
        """The number of correct predictions."""
        return int(self.predictions.correct.sum())

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the accuracy."""
        return wilson_interval(self.num_correct, self.num_images)

    def as_json(self) -> dict[str, Any]:
        """Return the content of metrics.json."""
        return {
            "model": dict(self.outputs.facts),
            "data": dict(self.data),
            "images": self.num_images,
            "metrics": {**self.metrics, "accuracy_interval": [round(bound, 6) for bound in self.interval]},
            "classes_without_images": list(self.outputs.absent_classes),
            "unknown_classes": {
                name: {"images": counts.total(), "predictions": dict(counts.most_common())}
                for name, counts in self.outputs.unknown_classes().items()
            },
        }


@dataclass(frozen=True)
class Subset:
    """Some of the images of an object that is indexed like an array; `positions` are their indices, `[M] int`."""

    images: Any
    positions: np.ndarray

    def __getitem__(self, index: Any) -> np.ndarray:
        images: np.ndarray = self.images[self.positions[index]]
        return images


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write nested values as JSON with escaped control characters."""
    with atomic_write(path) as tmp:
        tmp.write_text(escape_control_json(json.dumps(values, indent=2, ensure_ascii=False)) + "\n", encoding="utf-8")


def write_evaluation(folder: Path, evaluation: ModelEvaluation) -> dict[Path, Exception]:
    """Write metrics.json, the tables, the figures and report.html; return the errors of those that failed."""
    predictions, shown = evaluation.predictions, evaluation.most_confused()
    write_json(folder / METRICS_FILE, evaluation.as_json())
    write_per_class(folder / PER_CLASS_FILE, evaluation.per_class)
    write_confusion(folder / CONFUSION_FILE, shown.labels, shown.predictions, shown.classes)
    write_table(folder / PREDICTIONS_FILE, *prediction_rows([evaluation.outputs]))
    writers: dict[Path, Writer] = {
        folder / REPORT_FILE: partial(write_page, html=lambda: render_evaluation(evaluation)),
        folder / CONFUSION_FIGURE: lambda path: save(evaluation.confusion_figure(), path),
    }
    if not predictions.correct.all():
        writers[folder / ERROR_FIGURE] = lambda path: save(evaluation.error_figure(), path)
    return write_each(writers, evaluation.title)


def write_page(path: Path, html: Callable[[], str]) -> None:
    """Write a page."""
    with atomic_write(path) as tmp:
        tmp.write_text(html(), encoding="utf-8", newline="\n")


def prediction_rows(
    models: Sequence[ModelOutputs], letters: str = "", mask: np.ndarray | None = None
) -> tuple[list[str], list[list[str]]]:
    """Return the header and a row for each image: path, label, and of each model prediction, probability and result.

    The result is `correct`, `incorrect`, or `unknown class`. With several models the columns end in their letters.
    """
    suffixes = [f"_{letter}" for letter in letters] or [""]
    columns = ("prediction", "probability", "result")
    header = ["path", "label", *(f"{column}{suffix}" for suffix in suffixes for column in columns)]
    first = models[0]
    rows = []
    for index in range(len(first.paths)) if mask is None else np.flatnonzero(mask).tolist():
        row = [first.paths[index], first.names[index]]
        for model in models:
            correct = "correct" if model.correct[index] else "incorrect"
            row += [
                model.classes[model.predicted[index]],
                f"{model.confidence[index]:.6f}",
                correct if model.is_known[index] else "unknown class",
            ]
        rows.append(row)
    return header, rows


def render_evaluation(evaluation: ModelEvaluation) -> str:
    """Render the page of a model as HTML."""
    predictions, options = evaluation.predictions, evaluation.options
    per_class = {name: values for name, values in evaluation.per_class.items() if values["support"]}
    calibration = reliability(predictions.confidence, predictions.correct, options.calibration_bins)
    return render(
        "model_evaluation.html",
        title=evaluation.title,
        metrics=evaluation.metrics,
        other_metrics=chosen_metrics(evaluation.metrics),
        images=evaluation.num_images,
        interval=evaluation.interval,
        model_rows=evaluation.model_rows,
        data_rows=evaluation.data_rows,
        unknown=unknown_rows(evaluation.outputs),
        num_unknown=int((~evaluation.outputs.is_known).sum()),
        absent=list_names(evaluation.outputs.absent_classes),
        confusion=confusion_table(evaluation),
        per_class=class_tables(per_class, options),
        calibration=calibration_section(calibration),
        errors=error_cards(predictions, evaluation.images, options.num_error_images),
        num_errors=evaluation.num_images - evaluation.num_correct,
    )


def unknown_rows(outputs: ModelOutputs) -> list[tuple[str, int, str, str]]:
    """List (class, images, most frequent predictions, mean confidence) of the classes that the model does not know."""
    rows = []
    names = np.array(outputs.names)
    for name, counts in outputs.unknown_classes().items():
        total = counts.total()
        shares = (f"{other} ({percent(count / total, 0)})" for other, count in counts.most_common())
        predicted = list_names(shares, limit=MAX_PREDICTED)
        confidence = float(outputs.confidence[names == name].mean())
        rows.append((name, total, predicted, percent(confidence, 0)))
    return rows
