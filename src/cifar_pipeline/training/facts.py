"""What is worth knowing about a finished training, as it is written beside its models."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from cifar_pipeline.config.compose import decisive
from cifar_pipeline.config.identity import KEYS
from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.training.fit import Fitted, Plan
from cifar_pipeline.training.history import best_row


def training_facts(
    plan: Plan, fitted: Fitted, config: DictConfig, chosen: Mapping[str, str], dataset: Dataset, commit: str
) -> dict[str, Any]:
    """Facts for whoever uses the models: what went in, what the outputs mean, how long it took on what.

    `chosen` is the option of each group, `commit` that of the code.
    """
    rows, values = fitted.rows, decisive(config)
    return {
        "identity": plan.folder.identity,
        "dataset": {"name": dataset.name, "hash": dataset.hash},
        "classes": list(dataset.classes),
        "shape": list(dataset.shape),
        "fit": dataset.fit,
        "probabilities": config.loss.probabilities,
        "loss": values["loss"],
        "choices": {key: option for key, option in chosen.items() if key in ("experiment", "data", *KEYS)},
        "recipe": {key: values[key] for key in KEYS},
        "parameters": sum(parameter.numel() for parameter in plan.module.net.parameters()),
        "epochs": len(rows),
        "best_epoch": int(best_row(rows)["epoch"]),
        "timing": {
            "seconds": round(fitted.seconds, 2),
            "images_per_second": round(sum(row["images_per_second"] for row in rows) / len(rows), 1),
            **plan.hardware.tags(),
        },
        "commit": commit,
    }
