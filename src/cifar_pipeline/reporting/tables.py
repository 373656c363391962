"""Predictions as tables: for DVC's confusion plot and for whoever wants to look at single images."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from cifar_pipeline.files import whole_file
from cifar_pipeline.reporting.csv_files import write_rows


def write_confusion(
    path: str | os.PathLike[str], labels: np.ndarray, predictions: np.ndarray, classes: Sequence[str]
) -> None:
    """Write `actual,predicted`, class names, a row per image, as DVC's template `confusion` counts them.

    A name that begins with `=`, `+`, `-` or `@` has a `'` before it, in DVC's plot as well.

    In dvc.yaml: `plots: [{reports/confusion.csv: {template: confusion, x: predicted, y: actual}}]`.

    Args:
        labels, predictions: `[N] int`, numbers of classes.
        classes: their names, in order.
    """
    _write(path, ["actual", "predicted"], zip(_names(labels, classes), _names(predictions, classes), strict=True))


def write_predictions(
    path: str | os.PathLike[str],
    labels: np.ndarray,
    predictions: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
) -> None:
    """Write `index,label,prediction,probability`, a row per image in the part's order.

    Args:
        labels, predictions: `[N] int`, numbers of classes; written as names.
        probabilities: `[N] float` of the predictions; written with six decimals.
        classes: their names, in order.
    """
    columns = (_names(labels, classes), _names(predictions, classes), [f"{p:.6f}" for p in probabilities])
    rows = zip(range(len(labels)), *columns, strict=True)
    _write(path, ["index", "label", "prediction", "probability"], rows)


def _names(numbers: np.ndarray, classes: Sequence[str]) -> list[str]:
    return [classes[int(number)] for number in numbers]


def _write(path: str | os.PathLike[str], header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    # The same bytes on every system: UTF-8 and a bare newline.
    with whole_file(Path(path)) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        write_rows(file, [header, *rows])
