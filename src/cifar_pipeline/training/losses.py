"""Losses that torch does not have in this form: on one-hot targets, averaged over the images, summed over the classes.

(torch's own means divide by the number of classes as well, which makes the gradients of ten classes ten times smaller.)
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from torchvision.ops import sigmoid_focal_loss

from cifar_pipeline.console import Refusal


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
            raise Refusal(f"loss.reduction={reduction} must be mean or none.")
        self.reduction = reduction

    def terms(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What is summed over the classes, `[N, K]`."""
        raise NotImplementedError

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar (`[N]` with reduction "none"), of logits `[N, K]` and labels `[N] int64`."""
        terms = self.terms(*_against_one_hot(logits, labels))
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


class Focal(OneHotLoss):
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
            raise Refusal(f"loss.alpha={alpha} must be between 0 and 1, or -1 for no weighting.")
        if not gamma >= 0:
            raise Refusal(f"loss.gamma={gamma} must be 0 or more.")
        self.alpha, self.gamma = alpha, gamma

    def terms(self, logits: Tensor, targets: Tensor) -> Tensor:
        terms: Tensor = sigmoid_focal_loss(logits, targets, self.alpha, self.gamma, reduction="none")
        return terms


def _against_one_hot(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The logits and their targets, both `[N, K]`, in single precision at least."""
    # Under bf16 autocast logits arrive with 8 bits: too few to add up a batch's terms.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Compared and not torch's one_hot, which looks at the labels' values: a tracer (`blocks`) has none to look at.
    classes = torch.arange(logits.shape[1], device=labels.device)
    return logits, (labels.unsqueeze(1) == classes).to(logits.dtype)
