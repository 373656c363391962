"""Rare classes counted for more in the loss: each image's loss times a weight of its own class."""

import inspect
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
        weights: one for each class, `[K] float`.
    """

    weights: Tensor

    def __init__(self, loss: nn.Module, weights: Tensor) -> None:
        super().__init__()
        self.loss = loss
        # Not kept in checkpoints: it follows from the configuration and the data.
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar, of logits `[N, K]` and labels `[N] int64`."""
        losses: Tensor = self.weights[labels] * self.loss(logits, labels)
        return losses.mean()


def build_loss(options: DictConfig, dataset: Dataset) -> nn.Module:
    """The loss that conf/loss chose, its images weighted as `class_weights` says (null: all alike).

    Raises:
        Refusal: there is not a weight for each class, a class has no training images to be balanced with, or the loss
            can't be asked for its value for each image.
    """
    values, choice = arguments(options, "loss"), options.get("class_weights")
    if choice is None:
        loss: nn.Module = instantiate(values)
        return loss
    if "reduction" not in inspect.signature(get_object(values["_target_"])).parameters:
        raise Refusal(
            f"loss.class_weights needs a loss that takes `reduction`, as torch's do, and {values['_target_']} doesn't: "
            "write loss.class_weights=null, or choose another loss."
        )
    return WeightedByClass(instantiate(values, reduction="none"), torch.tensor(_weights(choice, dataset)))


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
