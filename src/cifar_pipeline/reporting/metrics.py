"""Compute the metrics of metrics.json and per_class.csv, confusion matrices and confidence intervals.

Metrics are named `SPLIT/METRIC`, such as `val/accuracy`.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import torch


log = logging.getLogger(__name__)

# Name of the last column of a confusion matrix of some of the classes.
OTHER_CLASSES = "(other classes)"


def compute_metrics(
    probabilities: "torch.Tensor",
    labels: "torch.Tensor",
    loss: float,
    classes: Sequence[str],
    calibration_bins: int,
    digits: int = 6,
) -> dict[str, Any]:
    """Compute the metrics of the test split.

    Args:
        probabilities: `[N, K] float` in [0, 1], on any device; the prediction is the class of the largest one.
        labels: `[N] int64` in [0, K).
        loss: mean of the training loss over the N images; only rounded.
        classes: K names in class order; K >= 2.
        calibration_bins: equal bins of [0, 1] for the expected calibration error (Naeini et al. 2015, Guo et al. 2017:
            `sum_b n_b / N * |accuracy_b - mean confidence_b|`, confidence being the probability of the prediction).
        digits: decimals to which all numbers are rounded.

    Returns:
        JSON-ready `{"test": {"accuracy", "top3_accuracy", "loss", "calibration_error"}, "per_class": {name:
        {"precision", "recall", "f1", "support"}}}`. Support is a number of images; the others are fractions. A class
        that has no images or is never predicted gets 0 where the fraction would be 0/0. With fewer than three classes
        the top-3 accuracy is 1.

    Raises:
        ValueError: shapes do not match, no images, fewer than two classes, a label or a probability out of range, or a
            loss that is not finite.
    """
    # Imported here: torch takes seconds, and figures and sweeps need the rest of this module without it.
    import torch

    probabilities, labels = probabilities.detach().cpu().float(), labels.detach().cpu().long()
    _validate(probabilities, labels, classes)
    if not math.isfinite(loss):
        raise ValueError(f"The loss must be finite, got {loss}.")
    num_classes = len(classes)
    confidences, predictions = probabilities.max(dim=1)
    is_correct = predictions == labels
    in_top3 = (probabilities.topk(min(3, num_classes)).indices == labels[:, None]).any(dim=1)

    def rounded(value: torch.Tensor | float) -> float:
        return round(float(value), digits)

    # torchmetrics would copy all probabilities several times, count a matrix of all pairs of classes, and take seconds
    # to import.
    calibration = reliability(confidences.numpy(), is_correct.numpy(), calibration_bins)
    test = {
        "accuracy": rounded(is_correct.float().mean()),
        "top3_accuracy": rounded(in_top3.float().mean()),
        "loss": rounded(loss),
        "calibration_error": rounded(calibration.error),
    }
    predicted, support, correct = (
        torch.bincount(values, minlength=num_classes) for values in (predictions, labels, labels[is_correct])
    )
    precision, recall = correct / predicted.clamp(min=1), correct / support.clamp(min=1)
    f1 = 2 * correct / (predicted + support).clamp(min=1)
    per_class = {
        name: {
            "precision": rounded(precision[k]),
            "recall": rounded(recall[k]),
            "f1": rounded(f1[k]),
            "support": int(support[k]),
        }
        for k, name in enumerate(classes)
    }
    return {"test": test, "per_class": per_class}


def finite_metrics(values: Mapping[str, float], digits: int = 6) -> dict[str, float]:
    """Round metrics of conf/metrics/, and leave out with a warning those that are not finite, which JSON lacks."""
    for name, value in values.items():
        if not math.isfinite(value):
            log.warning(f"metrics.{name} is {value} on these images, and is left out of the results.")
    return {name: round(value, digits) for name, value in values.items() if math.isfinite(value)}


@dataclass(frozen=True)
class Reliability:
    """Predictions in equal bins of confidence.

    Attributes:
        edges: `[bins + 1]`, bin edges in [0, 1].
        counts: `[bins]`, predictions per bin.
        confidence: `[bins]`, mean confidence per bin; NaN for an empty bin.
        accuracy: `[bins]`, accuracy per bin; NaN for an empty bin.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: `sum_b n_b / N * |accuracy_b - mean confidence_b|` (Guo et al. 2017)."""
        gaps = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float((self.counts * gaps).sum() / max(1, self.counts.sum()))

    @property
    def overconfidence(self) -> float:
        """Mean confidence minus accuracy: positive for an overconfident model, negative for an underconfident one."""
        gaps = np.nan_to_num(self.confidence - self.accuracy)
        return float((self.counts * gaps).sum() / max(1, self.counts.sum()))


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int) -> Reliability:
    """Bin N predictions by confidence, for the calibration error and the reliability diagram.

    Args:
        confidence: `[N] float`, probability of each prediction, in [0, 1].
        correct: `[N] bool`.
        bins: number of equal bins of [0, 1].
    """
    # In the precision of the probabilities, so that a value on an edge falls into the same bin as in torchmetrics.
    confidence, edges = confidence.astype(np.float32).clip(0, 1), np.linspace(0, 1, bins + 1, dtype=np.float32)
    indices = np.clip(np.digitize(confidence, edges) - 1, 0, bins - 1)
    counts = np.bincount(indices, minlength=bins)
    divisor = np.where(counts > 0, counts, np.nan)
    means = (np.bincount(indices, weights=values, minlength=bins) / divisor for values in (confidence, correct))
    return Reliability(edges.astype(float), counts, *means)


def training_metrics(
    history: "pd.DataFrame", metadata: Mapping[str, Any], checkpoint: str
) -> dict[str, dict[str, Any]]:
    """Select the metrics of the training for metrics.json: the monitor, the number of epochs, time and speed.

    Args:
        history: one row per epoch, as in history.csv.
        metadata: content of models/metadata.json.
        checkpoint: the evaluated weights, `last` or `best`; the monitor is that of their epoch.

    Returns:
        JSON-ready `{"val": {"accuracy"}, "train": {"epochs", "seconds", "images_per_second"}}`, without the monitor if
        the history has no value of it; `train` also has `stopped`, the reason, if the training ended early.
    """
    metrics: dict[str, dict[str, Any]] = {}
    monitor = str(metadata.get("recipe", {}).get("monitor", ""))
    epoch = metadata.get("best_epoch") if checkpoint == "best" else history["epoch"].max()
    row = history[history["epoch"] == epoch].dropna(axis="columns")
    if monitor in row and len(row):
        split, _, name = monitor.partition("/")
        metrics[split] = {name: float(row[monitor].iloc[0])}
    timing = {key: metadata["timing"][key] for key in ("seconds", "images_per_second") if key in metadata["timing"]}
    stopped = {key: metadata[key] for key in ("stopped",) if key in metadata}
    return {**metrics, "train": {**metrics.get("train", {}), "epochs": len(history), **timing, **stopped}}


def _validate(probabilities: "torch.Tensor", labels: "torch.Tensor", classes: Sequence[str]) -> None:
    num_classes = len(classes)
    if num_classes < 2 or len(set(classes)) != num_classes:
        raise ValueError(f"At least two classes with distinct names are needed, got {list(classes)}.")
    if probabilities.ndim != 2 or probabilities.shape[1] != num_classes or len(probabilities) == 0:
        raise ValueError(f"Probabilities must be [N, {num_classes}] with N > 0, got {list(probabilities.shape)}.")
    if labels.shape != probabilities.shape[:1]:
        raise ValueError(f"Labels must be [{len(probabilities)}], got {list(labels.shape)}.")
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise ValueError(f"Labels must be in 0 to {num_classes - 1}, got {int(labels.min())} to {int(labels.max())}.")
    # Softmax in low precision may be slightly above 1.
    lowest, highest = float(probabilities.min()), float(probabilities.max())
    if not (lowest >= -1e-2 and highest <= 1 + 1e-2):
        raise ValueError(f"Probabilities must be in 0 to 1, got {lowest:g} to {highest:g}.")


@dataclass(frozen=True)
class ConfusedPair:
    """A frequent error: `count` of the `images` of class index `actual` were predicted as `predicted`."""

    actual: int
    predicted: int
    count: int
    images: int

    @property
    def share(self) -> float:
        """Fraction of the actual class."""
        return self.count / self.images


@dataclass(frozen=True)
class Predictions:
    """Predicted and actual classes of N images.

    Attributes:
        classes: K names in class order.
        labels: `[N] int64` actual classes.
        predictions: `[N] int64` predicted classes.
        confidence: `[N] float` probability of each prediction.
    """

    classes: Sequence[str]
    labels: np.ndarray
    predictions: np.ndarray
    confidence: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """Mask of the correct predictions, `[N] bool`."""
        return np.asarray(self.labels == self.predictions)

    def confusion_matrix(self) -> np.ndarray:
        """Return image counts by actual class (row) and predicted class (column), `[K, K] int64`."""
        return confusion_counts(self.labels, self.predictions, len(self.classes))

    def confused_pairs(self, count: int) -> list[ConfusedPair]:
        """Return the most frequent errors by actual and predicted class; ties are in class order.

        Linear in the number of images, so it also serves for thousands of classes.
        """
        num_classes = len(self.classes)
        errors = ~self.correct
        codes, counts = np.unique(self.labels[errors] * num_classes + self.predictions[errors], return_counts=True)
        images = np.bincount(self.labels, minlength=num_classes)
        order = np.argsort(-counts, kind="stable")[:count]
        pairs = ((*divmod(int(codes[index]), num_classes), int(counts[index])) for index in order)
        return [ConfusedPair(actual, predicted, number, int(images[actual])) for actual, predicted, number in pairs]

    def confused_classes(self, pairs: int) -> np.ndarray:
        """Return the indices of the classes in the `pairs` most frequent errors, in class order."""
        found = self.confused_pairs(pairs)
        return np.unique(np.array([(pair.actual, pair.predicted) for pair in found], np.int64).ravel())

    def grouped(self, shown: np.ndarray) -> "Predictions":
        """Keep the images of the classes in `shown` (class indices), with all other predictions as one last class."""
        position = np.full(len(self.classes), len(shown))
        position[shown] = np.arange(len(shown))
        kept = np.isin(self.labels, shown)
        return Predictions(
            [*(self.classes[int(index)] for index in shown), OTHER_CLASSES],
            position[self.labels[kept]],
            position[self.predictions[kept]],
            self.confidence[kept],
        )

    def most_confident_errors(self, count: int) -> np.ndarray:
        """Return indices of the incorrect predictions with the highest confidence, in descending order."""
        return sort_by_confidence(~self.correct, self.confidence)[:count]

    def most_confident_correct(self, count: int) -> np.ndarray:
        """Return indices of the most confident correct prediction of each class, in descending order."""
        indices = sort_by_confidence(self.correct, self.confidence)
        _, first = np.unique(self.labels[indices], return_index=True)
        return indices[np.sort(first)][:count]

    def examples_to_explain(self, count: int) -> np.ndarray:
        """Return indices of up to `count` confident correct predictions, then of up to `count` confident errors."""
        return np.concatenate([self.most_confident_correct(count), self.most_confident_errors(count)])


def confusion_counts(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Count images by actual class (row) and predicted class (column): `[K, K] int64`."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (labels, predictions), 1)
    return counts


def sort_by_confidence(mask: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Return the indices in `mask` (`[N] bool`) by descending confidence; ties keep their order."""
    indices = np.flatnonzero(mask)
    return np.asarray(indices[np.argsort(-confidence[indices], kind="stable")])


def wilson_interval(correct: int, images: int, level: float = 0.95) -> tuple[float, float]:
    """Compute Wilson's confidence interval of an accuracy of `correct` out of `images`.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927. Unlike
    `p ± z * sqrt(p (1 - p) / n)` it also holds near 0 and 1 and for few images. (scipy has it, but its import takes a
    second.)
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    fraction, weight = correct / images, z * z / images
    center = (fraction + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(fraction * (1 - fraction) / images + weight / (4 * images))
    return max(0.0, center - half), min(1.0, center + half)
