"""Rare classes counted for more in the loss: each image's loss times a weight of its own class."""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from cifar_pipeline.config.targets import arguments
from cifar_pipeline.console import Refusal
from cifar_pipeline.data.dataset import Dataset


class WeightedByClass(nn.Module):
    """`J = 1/N * sum_i w[y_i] * J_i`: the mean over the images of each one's loss times its class's weight.

    It divides by the number of images, not by the sum of their weights as torch's `weight` does: of a small batch that
    holds one class alone, the weights would cancel out.

    Args:
        loss: logits `[N, K]` and labels `[N]` to a loss for each image, `[N]`.
        weights: a number for each class.
    """

    weights: Tensor

    def __init__(self, loss: nn.Module, weights: Sequence[float]) -> None:
        super().__init__()
        self.loss = loss
        # Not kept in checkpoints: it follows from the configuration and the data.
        self.register_buffer("weights", torch.tensor(list(weights)), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar, of logits `[N, K]` and labels `[N] int64`."""
        losses: Tensor = self.weights[labels] * self.loss(logits, labels)
        return losses.mean()


def build_loss(options: DictConfig, dataset: Dataset) -> nn.Module:
    """Build the loss that conf/loss chose. Raises what `loss_to_build` raises."""
    loss: nn.Module = instantiate(loss_to_build(options, dataset))
    return loss


def loss_to_build(options: DictConfig, dataset: Dataset) -> dict[str, Any]:
    """Describe the loss that conf/loss chose for `hydra.utils.instantiate`, its images weighted by `class_weights`.

    Training, validation and test build it from this one description: a training's facts hold it, with the weights as
    numbers, which are those of the training part.

    Raises:
        Refusal: there is not a weight for each class, a class has no training images to be balanced with, or the loss
            can't be asked for its value for each image.
    """
    values, choice = arguments(options, "loss"), options.get("class_weights")
    if choice is None:
        return values
    if "reduction" not in inspect.signature(get_object(values["_target_"])).parameters:
        raise Refusal(
            f"loss.class_weights needs a loss that takes `reduction`, as torch's do, and {values['_target_']} doesn't: "
            "write loss.class_weights=null, or choose another loss."
        )
    weighted = f"{WeightedByClass.__module__}.{WeightedByClass.__qualname__}"
    return {"_target_": weighted, "loss": {**values, "reduction": "none"}, "weights": _weights(choice, dataset)}


def _weights(choice: Any, dataset: Dataset) -> list[float]:
    """A weight for each class; balanced ones are 1 in the mean over the training images."""
    classes = dataset.classes
    if choice != "balanced":
        if len(choice) != len(classes):
            raise Refusal(
                f"loss.class_weights has {len(choice)} numbers, but {dataset.title} has {len(classes)} classes "
                f"({', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}): write one for each, or balanced."
            )
        return [float(weight) for weight in choice]
    _, labels = dataset.part("train")
    counts = np.bincount(labels, minlength=len(classes))
    if not counts.all():
        raise Refusal(
            f"loss.class_weights=balanced: the class {classes[int(counts.argmin())]} has no training images; give it "
            "some, or write a list of numbers, one for each class."
        )
    return [float(len(labels) / (len(classes) * count)) for count in counts]
