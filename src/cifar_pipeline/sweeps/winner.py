"""The command that makes a point of a sweep what the pipeline runs."""

import shlex

from cifar_pipeline.config.choices import is_choice
from cifar_pipeline.git import is_in_repository
from cifar_pipeline.tracking.points import settings
from cifar_pipeline.tracking.sweeps import PointRecord

# What a job was started with that says nothing about its training.
NOT_CHOSEN = ("hydra", "launcher", "machine", "rerun", "sweep")


def command_for(record: PointRecord) -> str:
    """`dvc exp run -S ...` with the point's choices; where there is no git, the same as an edit of params.yaml.

    The number of threads and the engine are named, because weights are equal bit for bit with the same only.
    """
    assert record.run is not None
    values = {
        key: value for key, value in settings(record.overrides).items() if key.partition(".")[0] not in NOT_CHOSEN
    }
    for key in ("threads", "engine"):
        used = record.run.data.tags.get(key, "auto")
        # Several one after the other, where the training was broken off, can't be asked for.
        values[f"machine.{key}"] = "auto" if "," in used else used
    if is_in_repository():
        return shlex.join(["dvc", "exp", "run", *(part for item in values.items() for part in ("-S", setting(*item)))])
    return (
        shlex.join(["python", "src/choose.py", *(f"{key}={value}" for key, value in values.items())]) + " && dvc repro"
    )


def setting(key: str, value: str) -> str:
    """How DVC writes a value of params.yaml."""
    return f"{key}={value}" if is_choice(key) else f"++overrides.{key}={value}"
