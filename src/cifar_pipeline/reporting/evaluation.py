"""All that an evaluation leaves in reports/: numbers for DVC, tables, and figures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cifar_pipeline.reporting.html_report import Evaluation
from cifar_pipeline.reporting.image_figures import error_figure, first_layer_figure
from cifar_pipeline.reporting.metrics import Predictions
from cifar_pipeline.reporting.plots import confusion_figure, learning_curves
from cifar_pipeline.reporting.style import save
from cifar_pipeline.reporting.tables import write_confusion, write_predictions
from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.text import escape_control_json


def write_numbers(
    reports: Path, metrics: Mapping[str, Any], timing: Mapping[str, Any], answers: Predictions
) -> list[Path]:
    """Write metrics.json, timing.json, confusion.csv and predictions.csv; returns their paths."""
    names = ("metrics.json", "timing.json", "confusion.csv", "predictions.csv")
    paths = [reports / name for name in names]
    for path, values in zip(paths, (metrics, timing), strict=False):
        with atomic_write(path) as part:
            part.write_text(
                escape_control_json(json.dumps(values, indent=2, ensure_ascii=False)) + "\n", encoding="utf-8"
            )
    write_confusion(paths[2], answers.labels, answers.predictions, answers.classes)
    write_predictions(paths[3], answers.labels, answers.predictions, answers.confidence, answers.classes)
    return paths


def write_figures(reports: Path, evaluation: Evaluation, mistakes: int) -> list[Path]:
    """Draw learning curves, confusion matrix, surest mistakes (so many) and filters; returns their paths."""
    title, answers = evaluation.title, evaluation.predictions
    filters = np.zeros((0, 3, 1, 1)) if evaluation.filters is None else evaluation.filters
    figures = {
        "learning_curves.png": learning_curves(evaluation.history, f"Learning curves: {title}"),
        "confusion.png": confusion_figure(answers.labels, answers.predictions, answers.classes, f"Confusion: {title}"),
        "mistakes.png": error_figure(
            evaluation.images,
            answers.labels,
            answers.predictions,
            answers.confidence,
            answers.classes,
            mistakes,
            f"The surest mistakes: {title}",
        ),
        "filters.png": first_layer_figure(filters, f"First layer: {title}"),
    }
    for name, figure in figures.items():
        save(figure, reports / name)
    return [reports / name for name in figures]
