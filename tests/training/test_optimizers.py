"""Each optimizer of conf/optimizer/ equals its formulas in NumPy over 100 steps."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from helpers.config_project import ROOT, options_of

# Softmax regression in double precision, with a gradient derived by hand: only the optimizer's step comes from torch.
STEPS, EXAMPLES, FEATURES, CLASSES, BATCH = 100, 60, 6, 4, 20

Array = np.ndarray
Rule = Callable[[Array, Iterator[Array], Any], None]


def options(name: str, **others: Any) -> DictConfig:
    """Load the values of an option, overridden by `others`."""
    loaded = OmegaConf.load(ROOT / "conf" / "optimizer" / f"{name}.yaml")
    assert isinstance(loaded, DictConfig)
    loaded.merge_with(others)
    return loaded


def build(config: DictConfig, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """Build the optimizer; all values except `full_batch` are arguments of its constructor."""
    arguments = OmegaConf.masked_copy(config, [str(key) for key in config if key != "full_batch"])
    optimizer: torch.optim.Optimizer = hydra.utils.instantiate(arguments)(parameters)
    return optimizer


def gradient(theta: Array, step: int, full_batch: bool) -> Array:
    """Return the gradient of `-mean_i log softmax(x_i theta)[y_i]`, `x^T (p - t) / n`, on a batch or all examples."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(EXAMPLES, FEATURES)), random.integers(0, CLASSES, EXAMPLES)
    if not full_batch:
        rows = np.arange(step * BATCH, (step + 1) * BATCH) % EXAMPLES
        x, y = x[rows], y[rows]
    z = x @ theta
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    slope: Array = x.T @ (p - np.eye(CLASSES)[y]) / len(x)
    return slope


def momentum_sgd(theta: Array, gradients: Iterator[Array], o: Any) -> None:
    v = np.zeros_like(theta)
    for g in gradients:
        g = g + o.weight_decay * theta
        v = o.momentum * v + g
        theta -= o.lr * (g + o.momentum * v if o.get("nesterov") else v)


def gradient_descent(theta: Array, gradients: Iterator[Array], o: Any) -> None:
    for g in gradients:
        theta -= o.lr * g


def adam(theta: Array, gradients: Iterator[Array], o: Any) -> None:
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    b1, b2 = o.betas
    for t, g in enumerate(gradients, start=1):
        g = g + o.weight_decay * theta
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        theta -= o.lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + o.eps)


def adamw(theta: Array, gradients: Iterator[Array], o: Any) -> None:
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    b1, b2 = o.betas
    for t, g in enumerate(gradients, start=1):
        theta -= o.lr * o.weight_decay * theta
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        theta -= o.lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + o.eps)


def rmsprop(theta: Array, gradients: Iterator[Array], o: Any) -> None:
    v, b = np.zeros_like(theta), np.zeros_like(theta)
    for g in gradients:
        g = g + o.weight_decay * theta
        v = o.alpha * v + (1 - o.alpha) * g**2
        b = o.momentum * b + g / (np.sqrt(v) + o.eps)
        theta -= o.lr * b


RULES: dict[str, Rule] = {
    "gradient_descent": gradient_descent,
    "sgd": momentum_sgd,
    "adam": adam,
    "adamw": adamw,
    "rmsprop": rmsprop,
}

# Each with the values of its file, then with every term of its formula in effect and a high learning rate.
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in RULES),
    ("sgd", {"lr": 0.1, "momentum": 0.0}),
    ("sgd", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    ("sgd", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("adam", {"lr": 0.05, "betas": [0.8, 0.95], "eps": 1e-3, "weight_decay": 0.1}),
    ("adamw", {"lr": 0.05, "betas": [0.8, 0.95], "eps": 1e-3, "weight_decay": 0.1}),
    ("rmsprop", {"lr": 0.05, "alpha": 0.9, "eps": 1e-3, "momentum": 0.5, "weight_decay": 0.1}),
]


def test_every_optimizer_of_conf_is_tested_here() -> None:
    assert set(options_of("optimizer", own=True)) == {*RULES, "muon", "normed_muon"}


@pytest.mark.parametrize(("name", "others"), CASES, ids=lambda case: str(case))
def test_a_hundred_steps_are_the_formulas(name: str, others: dict[str, Any]) -> None:
    config = options(name, **others)
    start = np.random.default_rng(1).normal(size=(FEATURES, CLASSES))

    expected = start.copy()
    RULES[name](expected, (gradient(expected, step, config.full_batch) for step in range(STEPS)), config)

    theta = nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = build(config, [theta])
    for step in range(STEPS):
        theta.grad = torch.from_numpy(gradient(theta.detach().numpy(), step, config.full_batch))
        optimizer.step()

    assert np.abs(expected - start).max() > 1e-2, "the parameters did not move, so nothing was compared"
    np.testing.assert_allclose(theta.detach().numpy(), expected, rtol=1e-10, atol=1e-10)


def test_only_gradient_descent_uses_the_full_batch() -> None:
    assert [name for name in options_of("optimizer", own=True) if options(name).full_batch] == ["gradient_descent"]


def muon_steps(config: DictConfig, shape: tuple[int, ...], steps: int) -> tuple[Array, list[Array]]:
    """Return the update of each step to a parameter of this shape, and the random gradients."""
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    optimizer = build(config, [parameter])
    gradients, moves = [], []
    for _ in range(steps):
        before = parameter.detach().clone()
        parameter.grad = torch.randn(shape, dtype=torch.float64)
        gradients.append(parameter.grad.numpy().copy())
        optimizer.step()
        moves.append((parameter.detach() - before).numpy())
    return np.stack(moves), gradients


@pytest.mark.parametrize("shape", [(6, 3, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84), (40, 10)])
def test_muon_moves_every_direction_of_a_weight_matrix_equally_far(shape: tuple[int, ...]) -> None:
    config = options("muon")
    rows, columns = shape[0], int(np.prod(shape[1:]))
    moves, _ = muon_steps(config, shape, steps=3)
    distance = config.lr * max(1, rows / columns) ** 0.5
    spectra = np.linalg.svd(moves.reshape(-1, rows, columns), compute_uv=False) / distance
    # Five iterations in bf16 bring singular values near 1, not to it.
    assert spectra.min() > 0.6
    assert spectra.max() < 1.3


def test_muon_goes_where_the_nearest_orthogonal_matrix_points() -> None:
    config = options("muon", momentum=0.0, nesterov=False)
    moves, gradients = muon_steps(config, (16, 6, 5, 5), steps=1)
    u, _, vt = np.linalg.svd(gradients[0].reshape(16, -1), full_matrices=False)
    expected, actual = -u @ vt, moves[0].reshape(16, -1)
    assert (expected * actual).sum() / np.linalg.norm(expected) / np.linalg.norm(actual) > 0.98


@pytest.mark.parametrize("shape", [(6,), (3, 10)])
def test_muon_moves_biases_and_narrow_matrices_by_adamw(shape: tuple[int, ...]) -> None:
    config = options("muon", nesterov=False, weight_decay=0.1)
    moves, gradients = muon_steps(config, shape, STEPS)
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    start = parameter.detach().clone()
    rate = config.lr * config.fallback_lr_scale
    # 1e-7 is timm's.
    reference = torch.optim.AdamW([parameter], lr=rate, betas=tuple(config.betas), eps=1e-7, weight_decay=0.1)
    for g in gradients:
        parameter.grad = torch.from_numpy(g)
        reference.step()
    np.testing.assert_allclose(moves.sum(axis=0), (parameter.detach() - start).numpy(), rtol=1e-9, atol=1e-10)


def test_muon_by_default_uses_nesterov_in_adamw_too() -> None:
    config = options("muon")
    assert config.nesterov
    moves, gradients = muon_steps(config, (6,), STEPS)
    rate, (b1, b2) = config.lr * config.fallback_lr_scale, config.betas
    m, v = np.zeros(6), np.zeros(6)
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        ahead = b1 * m + (1 - b1) * g
        expected = -rate * (ahead / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + 1e-7)
        np.testing.assert_allclose(moves[t - 1], expected, rtol=1e-8, atol=1e-10)


def test_muon_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(options("muon"), [nn.Parameter(torch.zeros(4, 4))])


FILTERS = (16, 6, 3, 3)


def test_normed_muon_moves_normalized_filters_towards_the_nearest_orthogonal_matrix() -> None:
    config = options("normed_muon", momentum=0.0)
    torch.manual_seed(0)
    filters = nn.Parameter(torch.randn(FILTERS, dtype=torch.float64))
    start = filters.detach().numpy().reshape(16, -1).copy()
    filters.grad = torch.randn(FILTERS, dtype=torch.float64)
    build(config, [filters]).step()
    of_length = start * 4 / np.linalg.norm(start)  # the root of 16 filters
    moved = filters.detach().numpy().reshape(16, -1) - of_length
    u, _, vt = np.linalg.svd(filters.grad.numpy().reshape(16, -1), full_matrices=False)
    # Three iterations in bf16 bring singular values near 1, not to it.
    assert (-u @ vt * moved).sum() / np.linalg.norm(u @ vt) / np.linalg.norm(moved) > 0.95
    assert np.linalg.norm(moved) == pytest.approx(config.lr * 4, rel=0.2)


def test_normed_muon_moves_filters_by_nesterovs_momentum() -> None:
    """The orthogonalized matrix is the gradient plus the momentum that includes it."""
    config = options("normed_muon", momentum=0.5)
    torch.manual_seed(0)
    filters, once = (nn.Parameter(torch.ones(FILTERS, dtype=torch.float64)) for _ in range(2))
    first, second = torch.randn((2, *FILTERS), dtype=torch.float64)
    optimizer = build(config, [filters])
    for gradient_of_step in (first, second):
        before = filters.detach().clone()
        filters.grad = gradient_of_step
        optimizer.step()
    with torch.no_grad():
        once.copy_(before)
    once.grad = second + 0.5 * (0.5 * first + second)
    build(options("normed_muon", momentum=0.0), [once]).step()
    torch.testing.assert_close(filters, once, rtol=0, atol=1e-2)


@pytest.mark.parametrize(("shape", "key"), [((6,), "bias_lr"), ((3, 10), "linear_lr")])
def test_normed_muon_moves_biases_and_matrices_by_sgd(shape: tuple[int, ...], key: str) -> None:
    config = options("normed_muon", bias_lr=0.02, linear_lr=0.01, weight_decay=0.001)
    moves, gradients = muon_steps(config, shape, STEPS)
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    start = parameter.detach().clone()
    rate = config[key]
    reference = torch.optim.SGD([parameter], lr=rate, momentum=0.85, nesterov=True, weight_decay=0.001 / rate)
    for g in gradients:
        parameter.grad = torch.from_numpy(g)
        reference.step()
    np.testing.assert_allclose(moves.sum(axis=0), (parameter.detach() - start).numpy(), rtol=1e-9, atol=1e-10)
