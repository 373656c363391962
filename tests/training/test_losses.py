"""Each loss of conf/loss/ equals its formula, computed with NumPy in double precision."""

from typing import Any

import hydra
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from cifar_pipeline.config.validation import target_config
from cifar_pipeline.training.losses import BinaryCrossEntropy, ClassWeightedLoss, FocalLoss, MeanSquaredError
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import ROOT, options_of

IMAGES, CLASSES = 7, 10

Array = np.ndarray[Any, np.dtype[Any]]


def batch() -> tuple[Array, Array]:
    """Logits `[7, 10] float64` with some outliers, and labels `[7] int64`."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(IMAGES, CLASSES), scale=2.0)
    logits[0, :2] = 30.0, -30.0
    return logits, random.integers(0, CLASSES, IMAGES)


def build(name: str) -> nn.Module:
    """Build the loss from its file as a training does, without class weights."""
    options: Any = OmegaConf.load(ROOT / "conf" / "loss" / f"{name}.yaml")
    loss: nn.Module = hydra.utils.instantiate(target_config(options, "loss"))
    return loss


def one_hot(y: Array) -> Array:
    targets: Array = np.eye(CLASSES)[y]
    return targets


def log_softmax(z: Array) -> Array:
    shifted = z - z.max(axis=1, keepdims=True)
    logarithms: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logarithms


def sigmoid(z: Array) -> Array:
    values: Array = 1 / (1 + np.exp(-z))
    return values


def log_sigmoid(z: Array) -> Array:
    logarithms: Array = -np.logaddexp(0, -z)
    return logarithms


def mse(z: Array, y: Array) -> float:
    return float(((z - one_hot(y)) ** 2).sum() / len(y))


def binary_cross_entropy(z: Array, y: Array) -> float:
    t = one_hot(y)
    # 1 - s(z) = s(-z), without the cancellation.
    return float(-(t * log_sigmoid(z) + (1 - t) * log_sigmoid(-z)).sum() / len(y))


def cross_entropy(z: Array, y: Array) -> float:
    return float(-log_softmax(z)[np.arange(len(y)), y].mean())


def label_smoothing(z: Array, y: Array, s: float = 0.1) -> float:
    t = (1 - s) * one_hot(y) + s / CLASSES
    return float(-(t * log_softmax(z)).sum() / len(y))


def focal(z: Array, y: Array, alpha: float = -1, gamma: float = 2.0) -> float:
    t = one_hot(y)
    signed = np.where(t == 1, z, -z)
    weight = np.where(t == 1, alpha, 1 - alpha) if alpha >= 0 else 1.0
    return float((-weight * (1 - sigmoid(signed)) ** gamma * log_sigmoid(signed)).sum() / len(y))


FORMULAS = {
    "mse": mse,
    "binary_cross_entropy": binary_cross_entropy,
    "cross_entropy": cross_entropy,
    "label_smoothing": label_smoothing,
    "focal": focal,
}


def test_every_loss_of_conf_has_its_formula_here() -> None:
    assert set(options_of("loss", own=True)) == set(FORMULAS)


@pytest.mark.parametrize("name", FORMULAS)
def test_each_loss_is_its_formula(name: str) -> None:
    z, y = batch()
    actual = build(name)(torch.from_numpy(z), torch.from_numpy(y))
    assert actual.shape == ()
    assert actual.item() == pytest.approx(FORMULAS[name](z, y), rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("name", FORMULAS)
def test_each_gradient_is_the_formulas_slope(name: str) -> None:
    z, y = batch()
    logits = torch.from_numpy(z).requires_grad_()
    build(name)(logits, torch.from_numpy(y)).backward()
    slopes, epsilon = np.zeros_like(z), 1e-5
    for index in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[index] += epsilon
        down[index] -= epsilon
        slopes[index] = (FORMULAS[name](up, y) - FORMULAS[name](down, y)) / (2 * epsilon)
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), slopes, atol=1e-6)


def test_focal_weighs_an_images_own_class_by_alpha() -> None:
    z, y = batch()
    actual = FocalLoss(alpha=0.25, gamma=1.5)(torch.from_numpy(z), torch.from_numpy(y))
    assert actual.item() == pytest.approx(focal(z, y, alpha=0.25, gamma=1.5), rel=1e-10)


def test_focal_without_focus_is_binary_cross_entropy() -> None:
    z, y = batch()
    actual = FocalLoss(alpha=-1, gamma=0)(torch.from_numpy(z), torch.from_numpy(y))
    assert actual.item() == pytest.approx(binary_cross_entropy(z, y), rel=1e-10)


@pytest.mark.parametrize(("alpha", "gamma", "key"), [(1.5, 2.0, "alpha"), (-0.5, 2.0, "alpha"), (0.25, -1.0, "gamma")])
def test_focal_refuses_what_its_formula_does_not_allow(alpha: float, gamma: float, key: str) -> None:
    with pytest.raises(UserError, match=rf"loss\.{key}="):
        FocalLoss(alpha, gamma)


@pytest.mark.parametrize("loss", [MeanSquaredError(), BinaryCrossEntropy(), FocalLoss(-1, 2.0)])
@pytest.mark.parametrize("count", [1, 256])
def test_half_precision_logits_are_summed_in_single_precision(loss: nn.Module, count: int) -> None:
    torch.manual_seed(0)
    logits: Tensor = torch.randn(count, CLASSES).bfloat16()
    labels = torch.randint(0, CLASSES, (count,))
    actual = loss(logits, labels)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), loss(logits.double(), labels), rtol=1e-5, atol=1e-6)


def mixed() -> tuple[Array, Array]:
    """Logits `[7, 10] float64`, and labels of two classes for each image, `[7, 10] float32`."""
    logits, y = batch()
    share = np.linspace(0.1, 1.0, IMAGES)[:, None]
    return logits, (share * one_hot(y) + (1 - share) * one_hot(np.roll(y, 1))).astype(np.float32)


def expected_of_mixed(name: str, z: Array, t: Array) -> float:
    p, sigmoid = np.exp(z) / np.exp(z).sum(1, keepdims=True), 1 / (1 + np.exp(-z))
    binary = -(t * np.log(sigmoid) + (1 - t) * np.log1p(-sigmoid))
    hit = sigmoid * t + (1 - sigmoid) * (1 - t)
    return float(
        {
            "cross_entropy": -(t * np.log(p)).sum(1).mean(),
            "label_smoothing": -((0.9 * t + 0.1 / CLASSES) * np.log(p)).sum(1).mean(),
            "binary_cross_entropy": binary.sum(1).mean(),
            "mse": ((z - t) ** 2).sum(1).mean(),
            "focal": ((1 - hit) ** 2 * binary).sum(1).mean(),
        }[name]
    )


@pytest.mark.parametrize("name", options_of("loss", own=True))
def test_mixed_labels_give_the_formula_with_shares_as_targets(name: str) -> None:
    z, t = mixed()
    z = z.clip(-8, 8)  # The formulas above overflow beyond.
    actual = build(name)(torch.from_numpy(z), torch.from_numpy(t).double())
    assert float(actual) == pytest.approx(expected_of_mixed(name, z, t.astype(float)), rel=1e-5)


@pytest.mark.parametrize("name", options_of("loss", own=True))
def test_class_weights_of_mixed_labels_are_the_mean_weight(name: str) -> None:
    z, t = mixed()
    weights = np.arange(1, CLASSES + 1).tolist()
    options: Any = OmegaConf.load(ROOT / "conf" / "loss" / f"{name}.yaml")
    each = hydra.utils.instantiate(target_config(options, "loss") | {"reduction": "none"})
    logits, labels = torch.from_numpy(z).float(), torch.from_numpy(t)
    expected = np.mean((t @ weights) * each(logits, labels).numpy())
    assert float(ClassWeightedLoss(each, list(map(float, weights)))(logits, labels)) == pytest.approx(
        float(expected), rel=1e-5
    )
