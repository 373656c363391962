"""Losses on one-hot or mixed targets, summed over the classes and averaged over the images, and class weights.

(torch's own means also divide by the number of classes, which makes the gradients of ten classes ten times smaller.)
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
from cifar_pipeline.utils.text import list_names


class OneHotLoss(nn.Module):
    """Base class of losses that compare each logit with a one-hot target.

    Args:
        reduction: "mean" over the images, or "none" for the loss of each image, `[N]`.

    Raises:
        UserError: `reduction` is neither.
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        if reduction not in ("mean", "none"):
            raise UserError(f"loss.reduction={reduction} must be mean or none.")
        self.reduction = reduction

    def elementwise_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the terms `[N, K]` that are summed over the classes."""
        raise NotImplementedError

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar (`[N]` with reduction "none"), of logits `[N, K]` and labels.

        The labels are `[N] int64`, or `[N, K] float` if mixed.
        """
        terms = self.elementwise_loss(*_targets(logits, labels))
        return terms.sum(1) if self.reduction == "none" else terms.sum() / len(labels)


class MeanSquaredError(OneHotLoss):
    """Squared error of logits, `J = 1/N * sum_i sum_k (z_ik - t_ik)^2` with `t = one_hot(y)`."""

    def elementwise_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return mse_loss(logits, targets, reduction="none")


class BinaryCrossEntropy(OneHotLoss):
    """Binary cross-entropy of each class against all others.

    `J = -1/N * sum_i sum_k [t_ik log s(z_ik) + (1 - t_ik) log(1 - s(z_ik))]` with the logistic sigmoid `s`.
    """

    def elementwise_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(logits, targets, reduction="none")


class FocalLoss(OneHotLoss):
    """Binary cross-entropy with each term weighted by `alpha_t * (1 - p_t)^gamma`.

    `p_t` is the predicted probability of the term's target (0 or 1).

    T.-Y. Lin et al., "Focal Loss for Dense Object Detection", 2017; torchvision's implementation.

    Args:
        alpha: weight, in [0, 1], of an image's own class; the other classes weigh `1 - alpha`. -1: all weigh 1.
        gamma: how strongly easy examples are down-weighted; 0 gives binary cross-entropy.
        reduction: see `OneHotLoss`.

    Raises:
        UserError: alpha is neither -1 nor in [0, 1], or gamma is negative.
    """

    def __init__(self, alpha: float, gamma: float, reduction: str = "mean") -> None:
        super().__init__(reduction)
        if alpha != -1 and not 0 <= alpha <= 1:
            raise UserError(f"loss.alpha={alpha} must be between 0 and 1, or -1 for no weighting.")
        if not gamma >= 0:
            raise UserError(f"loss.gamma={gamma} must be 0 or more.")
        self.alpha, self.gamma = alpha, gamma

    def elementwise_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        terms: Tensor = sigmoid_focal_loss(logits, targets, self.alpha, self.gamma, reduction="none")
        return terms


def _targets(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits and the one-hot or mixed targets, both `[N, K]`, in at least single precision."""
    # Under bf16 autocast logits have 8 bits of mantissa, too few to sum the terms of a batch.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if labels.ndim == 2:
        return logits, labels.to(logits.dtype)
    # Not torch's one_hot, which reads the values of the labels: tracing (`compiled.step`) has none.
    classes = torch.arange(logits.shape[1], device=labels.device)
    return logits, (labels.unsqueeze(1) == classes).to(logits.dtype)


class ClassWeightedLoss(nn.Module):
    """Weight the loss of each image by its class, `J = 1/N * sum_i w[y_i] * J_i`; of mixed labels by their mean weight.

    It divides by the number of images, not by the sum of their weights as torch's `weight` does, with which the weights
    cancel out in a small batch of a single class.

    Args:
        loss: maps logits `[N, K]` and labels `[N]` to the loss of each image, `[N]`.
        weights: one per class.
    """

    weights: Tensor

    def __init__(self, loss: nn.Module, weights: Sequence[float]) -> None:
        super().__init__()
        self.loss = loss
        # Not in checkpoints, because it follows from the configuration and the data.
        self.register_buffer("weights", torch.tensor(list(weights)), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar, of logits `[N, K]` and labels `[N] int64`, or `[N, K] float` if mixed."""
        weights = labels @ self.weights if labels.ndim == 2 else self.weights[labels]
        losses: Tensor = weights * self.loss(logits, labels)
        return losses.mean()


def build_loss(options: DictConfig, dataset: Dataset) -> nn.Module:
    """Build the loss of conf/loss. Raises what `loss_to_build` raises."""
    loss: nn.Module = instantiate(loss_to_build(options, dataset))
    return loss


def loss_to_build(options: DictConfig, dataset: Dataset) -> dict[str, Any]:
    """Return the loss of conf/loss, including `class_weights`, as a config for `hydra.utils.instantiate`.

    Training, validation and test build the loss from it. It is saved in the metadata, with balanced class weights as
    the numbers computed from the train split.

    Raises:
        UserError: the number of weights differs from the number of classes, a class has no training images to balance,
            or the loss has no `reduction` argument.
    """
    values, class_weights = target_config(options, "loss"), options.get("class_weights")
    if class_weights is None:
        return values
    if "reduction" not in inspect.signature(get_object(values["_target_"])).parameters:
        raise UserError(
            f"loss.class_weights needs a loss that takes `reduction`, as torch's do, but {values['_target_']} does "
            "not: set loss.class_weights=null or choose another loss."
        )
    weighted = f"{ClassWeightedLoss.__module__}.{ClassWeightedLoss.__qualname__}"
    return {
        "_target_": weighted,
        "loss": {**values, "reduction": "none"},
        "weights": _class_weights(class_weights, dataset),
    }


def _class_weights(weights: Any, dataset: Dataset) -> list[float]:
    """Return one weight per class; balanced weights have a mean of 1 over the training images."""
    classes = dataset.classes
    if weights != "balanced":
        if len(weights) != len(classes):
            raise UserError(
                f"loss.class_weights has {len(weights)} numbers, but {dataset.title} has {len(classes)} classes "
                f"({list_names(classes)}); give one per class, or balanced."
            )
        return [float(weight) for weight in weights]
    _, labels = dataset.split("train")
    counts = np.bincount(labels, minlength=len(classes))
    if not counts.all():
        raise UserError(
            f"loss.class_weights=balanced: the class {classes[int(counts.argmin())]} has no training images; add some, "
            "or give a list of one weight per class."
        )
    return [float(len(labels) / (len(classes) * count)) for count in counts]
