"""Losses that torch does not have in this form: on one-hot targets, averaged over the images, summed over the classes.

(torch's own means divide by the number of classes as well, which makes the gradients of ten classes ten times smaller.)

Rare classes counted for more in the loss: each image's loss times a weight of its own class.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from torchvision.ops import sigmoid_focal_loss

from cifar_pipeline.config.validation import target_config
from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.utils.errors import UserError


class OneHotLoss(nn.Module):
    """What the losses below share.

    Args:
        reduction: "mean" over the images, or "none": a loss for each image, `[N]`.

    Raises:
        Refusal: reduction is neither.
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        if reduction not in ("mean", "none"):
            raise UserError(f"loss.reduction={reduction} must be mean or none.")
        self.reduction = reduction

    def terms(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What is summed over the classes, `[N, K]`."""
        raise NotImplementedError

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar (`[N]` with reduction "none"), of logits `[N, K]` and labels `[N] int64`."""
        terms = self.terms(*_one_hot(logits, labels))
        return terms.sum(1) if self.reduction == "none" else terms.sum() / len(labels)


class MeanSquaredError(OneHotLoss):
    """`J = 1/N * sum_i sum_k (z_ik - t_ik)^2` with `t = one_hot(y)`: the squared distance to the right corner."""

    def terms(self, logits: Tensor, targets: Tensor) -> Tensor:
        return mse_loss(logits, targets, reduction="none")


class BinaryCrossEntropy(OneHotLoss):
    """`J = -1/N * sum_i sum_k [t_ik log s(z_ik) + (1 - t_ik) log(1 - s(z_ik))]`, `s` the logistic sigmoid.

    Each class against all others.
    """

    def terms(self, logits: Tensor, targets: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(logits, targets, reduction="none")


class FocalLoss(OneHotLoss):
    """Binary cross-entropy with each term weighted by `alpha_t * (1 - p_t)^gamma`, `p_t` what the term's side is given.

    T.-Y. Lin et al., "Focal Loss for Dense Object Detection", 2017; torchvision's implementation.

    Args:
        alpha: weight, in [0, 1], of each image's own class; the other classes weigh `1 - alpha`. -1: both weigh 1.
        gamma: how much less easy examples count; 0 is binary cross-entropy.
        reduction: as for the others.

    Raises:
        Refusal: alpha is neither -1 nor in [0, 1], or gamma is negative.
    """

    def __init__(self, alpha: float, gamma: float, reduction: str = "mean") -> None:
        super().__init__(reduction)
        if alpha != -1 and not 0 <= alpha <= 1:
            raise UserError(f"loss.alpha={alpha} must be between 0 and 1, or -1 for no weighting.")
        if not gamma >= 0:
            raise UserError(f"loss.gamma={gamma} must be 0 or more.")
        self.alpha, self.gamma = alpha, gamma

    def terms(self, logits: Tensor, targets: Tensor) -> Tensor:
        terms: Tensor = sigmoid_focal_loss(logits, targets, self.alpha, self.gamma, reduction="none")
        return terms


def _one_hot(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The logits and their targets, both `[N, K]`, in single precision at least."""
    # Under bf16 autocast logits arrive with 8 bits: too few to add up a batch's terms.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Compared and not torch's one_hot, which looks at the labels' values: a tracer (`blocks`) has none to look at.
    classes = torch.arange(logits.shape[1], device=labels.device)
    return logits, (labels.unsqueeze(1) == classes).to(logits.dtype)


class ClassWeightedLoss(nn.Module):
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
    values, choice = target_config(options, "loss"), options.get("class_weights")
    if choice is None:
        return values
    if "reduction" not in inspect.signature(get_object(values["_target_"])).parameters:
        raise UserError(
            f"loss.class_weights needs a loss that takes `reduction`, as torch's do, and {values['_target_']} doesn't: "
            "write loss.class_weights=null, or choose another loss."
        )
    weighted = f"{ClassWeightedLoss.__module__}.{ClassWeightedLoss.__qualname__}"
    return {"_target_": weighted, "loss": {**values, "reduction": "none"}, "weights": _weights(choice, dataset)}


def _weights(choice: Any, dataset: Dataset) -> list[float]:
    """A weight for each class; balanced ones are 1 in the mean over the training images."""
    classes = dataset.classes
    if choice != "balanced":
        if len(choice) != len(classes):
            raise UserError(
                f"loss.class_weights has {len(choice)} numbers, but {dataset.title} has {len(classes)} classes "
                f"({', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}): write one for each, or balanced."
            )
        return [float(weight) for weight in choice]
    _, labels = dataset.split("train")
    counts = np.bincount(labels, minlength=len(classes))
    if not counts.all():
        raise UserError(
            f"loss.class_weights=balanced: the class {classes[int(counts.argmin())]} has no training images; give it "
            "some, or write a list of numbers, one for each class."
        )
    return [float(len(labels) / (len(classes) * count)) for count in counts]
