"""What is worth knowing about a finished training, as it is written beside its models."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from cifar_pipeline.config.compose import decisive
from cifar_pipeline.config.identity import KEYS
from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.training.checkpoints import BEST, read_checkpoint
from cifar_pipeline.training.class_weights import loss_to_build
from cifar_pipeline.training.fit import Fitted, Plan

# What of the timing is a measurement, and not what was measured on.
MEASURED = ("seconds", "images_per_second")


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
        "loss": loss_to_build(config.loss, dataset),
        "choices": {key: option for key, option in chosen.items() if key in ("experiment", "data", *KEYS)},
        "recipe": {key: values[key] for key in KEYS},
        "parameters": sum(parameter.numel() for parameter in plan.module.net.parameters()),
        "epochs": len(rows),
        "best_epoch": _best_epoch(plan, len(rows)),
        "timing": {
            "seconds": round(fitted.seconds, 2),
            "images_per_second": round(sum(row["images_per_second"] for row in rows) / len(rows), 1),
            **fitted.ran,
        },
        "commit": commit,
    }


def run_tags(facts: Mapping[str, Any]) -> dict[str, str]:
    """Those of a finished training's facts that its run can be filtered by.

    They are its own, also where a later command with other threads, or by another experiment's name, takes its result.
    """
    ran = {key: str(value) for key, value in facts["timing"].items() if key not in MEASURED}
    return ran | {"experiment": str(facts["choices"]["experiment"])}


def _best_epoch(plan: Plan, epochs: int) -> int:
    """The epoch, counted from 1, that the best weights are from, as their file says; without any, the last."""
    path = plan.folder.checkpoint(BEST)
    return int(read_checkpoint(path)["epoch"]) + 1 if path.is_file() else epochs
