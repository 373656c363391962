"""How a network's outputs become probabilities: each file in conf/loss/ names the way that fits its loss.

All take logits `[N, K]`, float32 or float64, and return probabilities `[N, K]` of the same type, each row summing to 1.
"""

from collections.abc import Callable
from difflib import get_close_matches

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from cifar_pipeline.console import Refusal


def softmax(logits: Tensor) -> Tensor:
    """`p_k = exp(z_k) / sum_j exp(z_j)`: what cross-entropy is the likelihood of."""
    return torch.softmax(logits, dim=1)


def normalised_sigmoid(logits: Tensor) -> Tensor:
    """`p_k = s(z_k) / sum_j s(z_j)`, `s` the logistic sigmoid: for classes each trained against all others."""
    # The same quotient by way of logarithms: where every sigmoid underflows to 0, it would be 0 / 0.
    return torch.softmax(logsigmoid(logits), dim=1)


def clipped(logits: Tensor) -> Tensor:
    """`p_k = max(z_k, 0) / sum_j max(z_j, 0)`, and 1/K where none is positive: for outputs that are votes already."""
    votes = logits.clamp(min=0)
    total = votes.sum(dim=1, keepdim=True)
    return torch.where(total > 0, votes / total.where(total > 0, 1), 1 / logits.shape[1])


WAYS: dict[str, Callable[[Tensor], Tensor]] = {way.__name__: way for way in (softmax, normalised_sigmoid, clipped)}


def by_name(name: str) -> Callable[[Tensor], Tensor]:
    """The way of this name.

    Raises:
        Refusal: there is none; the sentence names those there are, and the nearest.
    """
    if name not in WAYS:
        nearest = get_close_matches(name, WAYS, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else "."
        raise Refusal(f"loss.probabilities={name} is not known: it can be {', '.join(WAYS)}{hint}")
    return WAYS[name]
