"""Build the metrics of conf/metrics/, torchmetrics' classification metrics, for validation and for the test split."""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from torch.nn.functional import one_hot
from torchmetrics import Metric, MetricCollection

from cifar_pipeline.config.params import CONF
from cifar_pipeline.config.validation import root_cause, target_config
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import one_line

# Classes that each metric is tried on.
TRIED_CLASSES = 64
# Names of metrics that are always measured, of the validation or the test split.
BUILT_IN_NAMES = ("accuracy", "loss", "top3_accuracy", "calibration_error")


def build_metrics(options: Mapping[str, Any], num_classes: int) -> MetricCollection | None:
    """Build the metrics of probabilities `[N, K]` and labels `[N]`; None without any.

    Args:
        options: the group `metrics`.
        num_classes: K, passed to each class that has such an argument.

    Raises:
        UserError: a metric has the name of one that is always measured, cannot be built, does not fit the number of
            classes, or has several values.
    """
    if taken := next((name for name in options if name in BUILT_IN_NAMES), None):
        raise UserError(
            f"metrics.{taken}: {taken} is always measured; give the metric in {CONF}/metrics/ another name, such as "
            f"my_{taken}."
        )
    metrics = {
        name: _build_metric(name, target_config(node, f"metrics.{name}"), num_classes) for name, node in options.items()
    }
    return MetricCollection(metrics) if metrics else None  # type: ignore[arg-type]


def _build_metric(name: str, values: dict[str, Any], num_classes: int) -> Metric:
    if "num_classes" in inspect.signature(get_object(values["_target_"])).parameters:
        values["num_classes"] = num_classes
    try:
        metric: Metric = instantiate(values, _convert_="all")
        # One image of each of the first classes, to find out before the training whether it works.
        labels = torch.arange(min(num_classes, TRIED_CLASSES))
        with warnings.catch_warnings(action="ignore"):
            value = metric(one_hot(labels, num_classes).float(), labels)
        metric.reset()
    except Exception as error:
        raise UserError(
            f"metrics.{name} does not work with {num_classes} classes: {one_line(root_cause(error))}"
        ) from None
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        raise UserError(f"metrics.{name} has several values; set metrics.{name}.average=macro or micro.")
    return metric


def compute_values(
    metrics: MetricCollection | None, probabilities: torch.Tensor, labels: torch.Tensor
) -> dict[str, float]:
    """Compute the metrics of a whole split, given probabilities `[N, K]` and labels `[N]`."""
    if metrics is None:
        return {}
    with warnings.catch_warnings(action="ignore"):
        return {name: float(value) for name, value in metrics(probabilities, labels).items()}
