"""A trial: one job of a sweep. Kept apart from what imports MLflow, which takes seconds."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

# MLflow's tag that makes a run the child of another.
PARENT_KEY = "mlflow.parentRunId"
# Tag: why a trial failed.
FAILURE_TAG = "failure"
# Tag: why a search stopped a trial before its last epoch. Its run is KILLED, and its status in a comparison PRUNED.
PRUNED_TAG = "pruned"
# Tags of a search's parent run: its objectives as JSON, and the name of its study in Optuna's storage.
OBJECTIVES_TAG, STUDY_TAG = "objectives", "study"
# Metrics of a whole training: parameters of its network, and the time that it took without what comes before and after.
RUN_METRICS = ("parameters", "training_seconds")
# Tag: seconds that all processes spent on a training. A run's own duration includes the time between them.
SECONDS_TAG = "seconds"
# Tag: id of the rerun that a run belongs to; on a sweep's parent, the id of its unfinished rerun.
RERUN = "rerun"
# Tag of a trial's run: id of the sweep's rerun that trained or continued it.
SWEEP_RERUN = "sweep.rerun"
# Tag of a trial's run: name in CUDA_VISIBLE_DEVICES of the GPU that the sweep gave to it.
GPU_TAG = "gpu"
# Keys that every run's name contains.
KEYS_IN_RUN_NAME = ("optimizer", "loss", "seed")


class Objective(NamedTuple):
    """Objective of a search: a metric, and whether larger or smaller values of it are better (`max` or `min`)."""

    metric: str
    mode: str


class TrialPruned(Exception):
    """Raised in a training that the pruner of a search stops; the message is the reason."""


@dataclass(frozen=True)
class Trial:
    """One job of a sweep.

    Attributes:
        parent: id of the sweep's parent run.
        number: counted from 0.
        overrides: the job's command line.
        swept: the keys that differ between the trials.
        total: number of trials; 0 where it is not known in advance.
        rerun: id of the sweep's rerun; empty for none.
        gpu: name in CUDA_VISIBLE_DEVICES of the GPU that the sweep gave to the trial; empty for none.
    """

    parent: str
    number: int
    overrides: tuple[str, ...]
    swept: tuple[str, ...]
    total: int = 0
    rerun: str = ""
    gpu: str = ""

    @property
    def title(self) -> str:
        """`Trial 3/12`, or `Trial 3` for a search over ranges, whose total is unknown."""
        return f"Trial {self.number + 1}" + (f"/{self.total}" if self.total else "")

    @property
    def label(self) -> str:
        """The swept values: `optimizer=adam optimizer.lr=0.01`."""
        return " ".join(f"{key}={value}" for key, value in self._swept_values)

    @property
    def name_suffixes(self) -> list[str]:
        """The swept values that `optimizer-loss-seed`, the start of a run's name, does not contain."""
        return [f"{key}={value}" for key, value in self._swept_values if key not in KEYS_IN_RUN_NAME]

    @property
    def _swept_values(self) -> list[tuple[str, str]]:
        return [item for item in parse_overrides(self.overrides).items() if item[0] in self.swept]


def parse_overrides(overrides: Iterable[str]) -> dict[str, str]:
    """Map the keys of command-line overrides to their values as text; the last override of a key wins."""
    pairs = (text.lstrip("+").partition("=") for text in overrides if not text.startswith("~"))
    return {key: value for key, _, value in pairs}


def checkpoint_metrics(
    rows: Iterable[Mapping[str, float]], monitor: str, mode: str, checkpoint: str
) -> dict[str, float]:
    """Return the metrics of a checkpoint; empty if the monitored one is missing or not finite.

    Args:
        rows: metrics of each epoch; those that an epoch lacks are taken from the epoch before for the last checkpoint.
        monitor: the metric by which the best checkpoint is chosen, the first one of ties.
        mode: whether larger or smaller values of it are better, `max` or `min`.
        checkpoint: `last` or `best`.
    """
    if checkpoint == "last":
        metrics = {key: value for row in rows for key, value in row.items()}
    else:
        known = [dict(row) for row in rows if math.isfinite(row.get(monitor, math.nan))]
        choose = max if mode == "max" else min
        metrics = choose(known, key=lambda row: row[monitor], default={})
    return metrics if math.isfinite(metrics.get(monitor, math.nan)) else {}
