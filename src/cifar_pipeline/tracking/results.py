"""Trainings that have been measured on the test part, as MLflow's database has them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlflow.entities import Run, ViewType

from cifar_pipeline.nested import flat
from cifar_pipeline.tracking.points import SECONDS
from cifar_pipeline.tracking.store import connect

ACCURACY = "test/accuracy"
# What decides a result, less the seed.
DECISIVE = (
    "data.source", "data.val_fraction", "model", "normalize", "augment", "loss", "optimizer", "schedule", "average",
    "precision", "trainer", "views",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """A finished training: its seed, its accuracy on the test part, its seconds, what it ran on, and its commit."""

    seed: int
    accuracy: float
    seconds: float
    hardware: str
    commit: str
    values: Mapping[str, str]


def measured_trainings(dataset: str) -> list[Measured]:
    """Those on the data set of this name, the oldest first; of a training measured again, the last result."""
    client, experiment = connect()
    runs = client.search_runs(
        [experiment],
        "attributes.status = 'FINISHED' and tags.identity LIKE '%'",
        ViewType.ACTIVE_ONLY,
        max_results=10_000,
        order_by=["attributes.start_time ASC"],
    )
    of_data = [run for run in runs if run.data.tags.get("dataset") == dataset and ACCURACY in run.data.metrics]
    return list({run.data.tags["identity"]: _measured(run) for run in of_data}.values())


def decisive_values(config: Mapping[str, Any]) -> dict[str, str]:
    """What of a configuration decides a result but for chance, as the parameters of a run."""
    return {key: str(value) for key, value in flat(config).items() if _decides(key)}


def _measured(run: Run) -> Measured:
    tags, values = run.data.tags, run.data.params
    device, processor = tags.get("device", "unknown"), tags.get("processor", "")
    return Measured(
        seed=int(values["seed"]),
        accuracy=run.data.metrics[ACCURACY],
        seconds=float(tags.get(SECONDS, "nan")),
        hardware=f"{processor}, {device}" if processor and device.startswith("cpu") else device,
        commit=tags.get("git.commit", "")[:7] + ("+" if tags.get("git.dirty") == "true" else ""),
        values={key: value for key, value in values.items() if _decides(key)},
    )


def _decides(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in DECISIVE)
