"""What a model's probabilities on the test part are worth, in numbers.

What a model said about one part of the data, beside what is true.

How far a number of test images fixes an accuracy.

What the name of a metric says: `val/accuracy` is a fraction of the validation part, and better the higher it is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from cifar_pipeline.utils.text import flatten_dict


def compute_metrics(
    probabilities: torch.Tensor,
    labels: torch.Tensor,
    loss: float,
    classes: Sequence[str],
    calibration_bins: int,
    digits: int = 6,
) -> dict[str, Any]:
    """Measure predictions of one part of the data.

    Args:
        probabilities: `[N, K] float` in [0, 1]; the prediction is the largest one's class. On any device.
        labels: `[N] int64` in [0, K).
        loss: mean of the training's loss over the N images; it is passed on.
        classes: the K names, in order of their numbers; K >= 2.
        calibration_bins: equal bins of [0, 1] for the expected calibration error (Naeini et al. 2015, Guo et al. 2017:
            `sum_b n_b / N * |accuracy_b - mean confidence_b|`, confidence being the prediction's probability).
        digits: decimals that every number is rounded to, here and so wherever it is written later.

    Returns:
        JSON-ready `{"test": {"accuracy", "top3_accuracy", "loss", "calibration_error"}, "per_class": {name:
        {"precision", "recall", "f1", "support"}}}`. Support is a number of images; the others are fractions. A class
        that has no image or is never predicted has 0 where the fraction would be 0/0. With fewer than three classes
        the top-3 accuracy is 1.

    Raises:
        ValueError: shapes don't fit, no images, fewer than two classes, a label or a probability out of range, a loss
            that is not finite.
    """
    probabilities, labels = probabilities.detach().cpu().float(), labels.detach().cpu().long()
    _check(probabilities, labels, classes)
    if not math.isfinite(loss):
        raise ValueError(f"The loss must be finite, got {loss}.")
    number = len(classes)
    predictions = probabilities.argmax(dim=1)

    def whole(value: torch.Tensor | float) -> float:
        return round(float(value), digits)

    # torchmetrics takes values above 1 for logits, and a confidence of exactly 1 would get a bin of its own.
    confidences = probabilities.clamp(0.0, 1.0 - torch.finfo(torch.float32).eps)
    test = {
        "accuracy": whole(multiclass_accuracy(predictions, labels, number, average="micro")),
        "top3_accuracy": whole(
            multiclass_accuracy(probabilities, labels, number, average="micro", top_k=min(3, number))
        ),
        "loss": whole(loss),
        "calibration_error": whole(multiclass_calibration_error(confidences, labels, number, calibration_bins)),
    }
    precision = multiclass_precision(predictions, labels, number, average="none")
    recall = multiclass_recall(predictions, labels, number, average="none")
    f1 = multiclass_f1_score(predictions, labels, number, average="none")
    support = torch.bincount(labels, minlength=number)
    per_class = {
        name: {
            "precision": whole(precision[k]),
            "recall": whole(recall[k]),
            "f1": whole(f1[k]),
            "support": int(support[k]),
        }
        for k, name in enumerate(classes)
    }
    return {"test": test, "per_class": per_class}


def flatten(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Name every number of a nested mapping by its way down: `test/accuracy`, `per_class/cat/recall`.

    What is no number (text, booleans, lists, None) is left out, so the whole of `metrics.json` may be handed in.
    """
    return {
        key: float(value)
        for key, value in flatten_dict(metrics, "/").items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _check(probabilities: torch.Tensor, labels: torch.Tensor, classes: Sequence[str]) -> None:
    number = len(classes)
    if number < 2 or len(set(classes)) != number:
        raise ValueError(f"At least two classes of different names are needed, got {list(classes)}.")
    if probabilities.ndim != 2 or probabilities.shape[1] != number or len(probabilities) == 0:
        raise ValueError(f"Probabilities must be [N, {number}] with N > 0, got {list(probabilities.shape)}.")
    if labels.shape != probabilities.shape[:1]:
        raise ValueError(f"Labels must be [{len(probabilities)}], got {list(labels.shape)}.")
    if int(labels.min()) < 0 or int(labels.max()) >= number:
        raise ValueError(f"Labels must lie in 0 to {number - 1}, got {int(labels.min())} to {int(labels.max())}.")
    # Softmax in low precision may end a little above 1.
    lowest, highest = float(probabilities.min()), float(probabilities.max())
    if not (lowest >= -1e-2 and highest <= 1 + 1e-2):
        raise ValueError(f"Probabilities must lie in 0 to 1, got {lowest:g} to {highest:g}.")


@dataclass(frozen=True)
class Predictions:
    """`labels` and `predictions` are `[N] int64`, `confidence` is the probability of each prediction, `[N] float`."""

    classes: Sequence[str]
    labels: np.ndarray
    predictions: np.ndarray
    confidence: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """Which answers are right, `[N] bool`."""
        return np.asarray(self.labels == self.predictions)

    def confusion_matrix(self) -> np.ndarray:
        """How many images of each class (row) are taken for each class (column): `[K, K] int64`."""
        return confusion_counts(self.labels, self.predictions, len(self.classes))

    def most_confident_errors(self, count: int) -> np.ndarray:
        """The places of the wrong answers that the model was surest of, surest first, `count` at most."""
        return sort_by_confidence(~self.correct, self.confidence)[:count]

    def most_confident_correct(self, count: int) -> np.ndarray:
        """The places of the right answers that the model was surest of, one of each class, `count` at most."""
        places = sort_by_confidence(self.correct, self.confidence)
        _, first = np.unique(self.labels[places], return_index=True)
        return places[np.sort(first)][:count]

    def examples_to_explain(self, count: int) -> np.ndarray:
        """The places of so many of the surest right answers and, after them, of the surest mistakes."""
        return np.concatenate([self.most_confident_correct(count), self.most_confident_errors(count)])


def confusion_counts(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """How many images of each class (row) are taken for each class (column): `[K, K] int64`."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, predictions), 1)
    return counts


def sort_by_confidence(chosen: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """The places that are chosen (`[N] bool`), surest first; of equally sure ones the earlier comes first."""
    places = np.flatnonzero(chosen)
    return np.asarray(places[np.argsort(-confidence[places], kind="stable")])


def wilson_interval(right: int, images: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of fractions for which `right` of `images` is nothing unusual, at a level of confidence.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927: unlike the usual
    `p ± z * sqrt(p (1 - p) / n)` it holds near 0 and 1 and for few images, too. (scipy has the same behind an import of
    a second.)
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    fraction, weight = right / images, z * z / images
    centre = (fraction + weight / 2) / (1 + weight)
    half = z / (1 + weight) * sqrt(fraction * (1 - fraction) / images + weight / (4 * images))
    return max(0.0, centre - half), min(1.0, centre + half)


SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}


def is_fraction(metric: str) -> bool:
    """Say whether a metric is a fraction, to be read in per cent."""
    return "accuracy" in metric


def display_name(metric: str) -> str:
    """Name a metric as a person would: `val/accuracy` is `validation accuracy`."""
    part, _, name = metric.rpartition("/")
    return f"{SPLIT_NAMES.get(part, part)} {name}".strip().replace("_", " ")


def lower_is_better(metric: str) -> bool:
    """Say whether a metric is better the lower it is: a loss or an error is, an accuracy isn't."""
    return any(word in metric.rpartition("/")[2] for word in ("loss", "error"))
