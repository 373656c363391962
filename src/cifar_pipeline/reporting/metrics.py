"""What a model's probabilities on the test part are worth, in numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from cifar_pipeline.nested import flat


def measure(
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
        for key, value in flat(metrics, "/").items()
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
