"""All that an evaluation leaves in reports/: numbers for DVC, tables, and figures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cifar_pipeline.files import whole_file
from cifar_pipeline.reporting.answers import Answers
from cifar_pipeline.reporting.confusion import confusion_matrix
from cifar_pipeline.reporting.curves import learning_curves
from cifar_pipeline.reporting.filters import first_layer
from cifar_pipeline.reporting.mistakes import surest_mistakes
from cifar_pipeline.reporting.pages.report import Evaluation
from cifar_pipeline.reporting.style import save
from cifar_pipeline.reporting.tables import write_confusion, write_predictions
from cifar_pipeline.visible import visible_json


def write_numbers(reports: Path, metrics: Mapping[str, Any], timing: Mapping[str, Any], answers: Answers) -> list[Path]:
    """Write metrics.json, timing.json, confusion.csv and predictions.csv; returns their paths."""
    names = ("metrics.json", "timing.json", "confusion.csv", "predictions.csv")
    paths = [reports / name for name in names]
    for path, values in zip(paths, (metrics, timing), strict=False):
        with whole_file(path) as part:
            part.write_text(visible_json(json.dumps(values, indent=2, ensure_ascii=False)) + "\n", encoding="utf-8")
    write_confusion(paths[2], answers.labels, answers.predictions, answers.classes)
    write_predictions(paths[3], answers.labels, answers.predictions, answers.confidence, answers.classes)
    return paths


def write_figures(reports: Path, evaluation: Evaluation, mistakes: int) -> list[Path]:
    """Draw learning curves, confusion matrix, surest mistakes (so many) and filters; returns their paths."""
    title, answers = evaluation.title, evaluation.answers
    filters = np.zeros((0, 3, 1, 1)) if evaluation.filters is None else evaluation.filters
    figures = {
        "learning_curves.png": learning_curves(evaluation.history, f"Learning curves: {title}"),
        "confusion.png": confusion_matrix(answers.labels, answers.predictions, answers.classes, f"Confusion: {title}"),
        "mistakes.png": surest_mistakes(
            evaluation.images,
            answers.labels,
            answers.predictions,
            answers.confidence,
            answers.classes,
            mistakes,
            f"The surest mistakes: {title}",
        ),
        "filters.png": first_layer(filters, f"First layer: {title}"),
    }
    for name, figure in figures.items():
        save(figure, reports / name)
    return [reports / name for name in figures]
