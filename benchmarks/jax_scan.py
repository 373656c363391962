"""Baseline: JAX, all steps of an epoch as one compiled `lax.scan`.

    python benchmarks/jax_scan.py --steps 2000

Network, optimizer and hyperparameters are the tutorial's; the initial weights do not affect the time.
"""

import time
from math import sqrt
from typing import Any

import jax  # type: ignore[import-not-found, unused-ignore]
import numpy as np
from common import CLASSES, HALF, LR, MOMENTUM, parser, print_step_result, since_start, train_images
from jax import lax
from jax import numpy as jnp

Weights = dict[str, Any]
# Kernel or matrix of each layer; convolutions height, width, channels in and out, as NHWC images take them.
SHAPES = {
    "conv1": (5, 5, 3, 6),
    "conv2": (5, 5, 6, 16),
    "fc1": (400, 120),
    "fc2": (120, 84),
    "fc3": (84, CLASSES),
}


def init_weights(generator: np.random.Generator) -> Weights:
    """Draw uniform initial weights as PyTorch does."""
    weights = {}
    for name, shape in SHAPES.items():
        bound = 1 / sqrt(np.prod(shape[:-1]))
        for kind, dimensions in (("weight", shape), ("bias", shape[-1:])):
            weights[f"{name}.{kind}"] = jnp.asarray(generator.uniform(-bound, bound, dimensions), jnp.float32)
    return weights


def predict_logits(weights: Weights, images: Any) -> Any:
    """Logits `[B, K]` of raw images `[B, H, W, C] uint8`."""
    features = (images.astype(jnp.float32) / 255 - HALF) / HALF
    for name in ("conv1", "conv2"):
        kernel = weights[f"{name}.weight"]
        features = lax.conv_general_dilated(
            features, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        features = jax.nn.relu(features + weights[f"{name}.bias"])
        features = lax.reduce_window(features, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    features = features.reshape(len(images), -1)
    for name in ("fc1", "fc2"):
        features = jax.nn.relu(features @ weights[f"{name}.weight"] + weights[f"{name}.bias"])
    return features @ weights["fc3.weight"] + weights["fc3.bias"]


def mean_loss(weights: Weights, images: Any, labels: Any) -> Any:
    log_probabilities = jax.nn.log_softmax(predict_logits(weights, images))
    return -jnp.take_along_axis(log_probabilities, labels[:, None], axis=1).mean()


def epoch(weights: Weights, velocity: Weights, images: Any, labels: Any, order: Any) -> tuple[Weights, Weights, Any]:
    """Run a step for each row of `order [S, B]`; returns weights, velocity and losses."""

    def step(state: tuple[Weights, Weights], index: Any) -> tuple[tuple[Weights, Weights], Any]:
        weights, velocity = state
        loss, gradients = jax.value_and_grad(mean_loss)(weights, images[index], labels[index])
        velocity = jax.tree.map(lambda speed, gradient: MOMENTUM * speed + gradient, velocity, gradients)
        weights = jax.tree.map(lambda weight, speed: weight - LR * speed, weights, velocity)
        return (weights, velocity), loss

    (weights, velocity), losses = lax.scan(step, (weights, velocity), order)
    return weights, velocity, losses


options = parser(__doc__).parse_args()
generator = np.random.default_rng(0)
raw, targets = train_images(options.data)
images, labels = jnp.asarray(raw), jnp.asarray(targets, jnp.int32)
weights = init_weights(generator)
velocity = jax.tree.map(jnp.zeros_like, weights)
order = jnp.asarray(generator.integers(0, len(raw), (options.steps, options.batch_size)), jnp.int32)
compiled = jax.jit(epoch, donate_argnums=(0, 1)).lower(weights, velocity, images, labels, order).compile()
start_up = since_start()
start = time.perf_counter()
weights, velocity, losses = compiled(weights, velocity, images, labels, order)
jax.block_until_ready((weights, losses))
print_step_result(start_up, time.perf_counter() - start, options.steps, options.batch_size)
