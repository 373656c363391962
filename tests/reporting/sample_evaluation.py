"""Build a small random evaluation, as `evaluate` passes it to the report page."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import torch

from cifar_pipeline.reporting.evaluation import Evaluation, ReportOptions
from cifar_pipeline.reporting.image_figures import AttributionMaps
from cifar_pipeline.reporting.metrics import Predictions, compute_metrics, training_metrics

OPTIONS = ReportOptions(
    calibration_bins=15,
    num_error_images=5,
    many_classes=40,
    num_confused_pairs=15,
    num_listed_classes=20,
    sample_seed=0,
)
HISTORY = pd.DataFrame({
    "epoch": [1, 2, 3], "train/loss": [2.0, 1.5, 1.0], "train/accuracy": [0.2, 0.4, 0.6],
    "val/loss": [1.9, 1.4, 1.6], "val/accuracy": [0.25, 0.45, 0.4], "lr": [0.1, 0.1, 0.1],
})  # fmt: skip
METADATA = {
    "parameters": 62006,
    "fingerprint": "0123456789abcdef",
    "commit": "c0ffee1" + 33 * "0",
    "epochs": 3,
    "best_epoch": 2,
    "choices": {"experiment": "tutorial", "optimizer": "adam"},
    "recipe": {
        "seed": 7,
        "monitor": "val/accuracy",
        "mode": "max",
        "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.002, "betas": [0.9, 0.99], "full_batch": False},
        "trainer": {"max_epochs": 3, "gradient_clip_val": None},
    },
    "timing": {"seconds": 67.4, "images_per_second": 40.1, "device": "cpu", "threads": "1"},
}


def make_evaluation(images: int = 300, classes: int = 4, size: int = 8, **changes: Any) -> Evaluation:
    """Make an evaluation with an accuracy of about one half, with `changes` to its fields."""
    generator = np.random.default_rng(images)
    labels = generator.integers(0, classes, images)
    logits = generator.normal(size=(images, classes)) * 2
    logits[np.arange(images), labels] += 1.5
    probabilities = torch.from_numpy(logits).float().softmax(1)
    confidence, predicted = (tensor.numpy() for tensor in probabilities.max(1))
    names = [f"class {number}" for number in range(classes)]
    predictions = Predictions(names, labels, predicted, confidence)
    dataset = {
        "name": "random", "title": "random images", "source": "a random generator", "fallback": False,
        "sizes": {"train": 900, "val": 100, "test": images}, "hash": 64 * "d",
    }  # fmt: skip
    measured = compute_metrics(probabilities, torch.from_numpy(labels), 1.25, names, OPTIONS.calibration_bins)
    explained = predictions.examples_to_explain(2)
    evaluation = Evaluation(
        run={"id": "a1b2c3", "name": "adam-cross_entropy-7"},
        metadata=METADATA,
        checkpoint="last",
        dataset=dataset,
        metrics={"test": measured["test"], **training_metrics(HISTORY, METADATA, "last")},
        per_class=measured["per_class"],
        caption="random images",
        predictions=predictions,
        images=generator.integers(0, 256, (images, size, size, 3), np.uint8),
        history=HISTORY,
        filters=generator.normal(size=(6, 3, 5, 5)),
        attributions=AttributionMaps(explained, generator.normal(size=(len(explained), size, size))),
        options=OPTIONS,
    )
    return dataclasses.replace(evaluation, **changes)
