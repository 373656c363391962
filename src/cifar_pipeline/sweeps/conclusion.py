"""What a sweep came to: its points gathered from MLflow, compared, and the command that chooses the best one."""

from pathlib import Path
from typing import Any

import pandas as pd

from cifar_pipeline.console import doing, say, warn
from cifar_pipeline.documents import json_of
from cifar_pipeline.reporting.comparison.groups import Comparison, winner
from cifar_pipeline.reporting.comparison.show import print_comparison, write
from cifar_pipeline.sweeps.winner import command_for
from cifar_pipeline.tracking.points import FAILURE, SECONDS, settings
from cifar_pipeline.tracking.sweeps import (
    PointRecord,
    end_left_points,
    end_sweep,
    find_sweep,
    forget_sweep,
    history,
    read_points,
)

METRICS = ["train/loss", "train/accuracy", "val/loss", "val/accuracy"]


def conclude(parent: str, folder: Path) -> bool:
    """Show the comparison, keep it in `folder` and on the parent run, and end that; whether no point failed."""
    doing("Comparing the points")
    end_left_points(parent)
    comparison = gather(parent)
    command = show(comparison, parent)
    well = bool((comparison.points["status"] == "FINISHED").all())
    doing("Drawing the comparison and its page")
    end_sweep(parent, "FINISHED" if well else "FAILED", write(comparison, folder, command))
    say(f"Kept in {folder} and on the sweep's run in MLflow (`make ui`); {folder / 'compare.html'} is its page.")
    return well


def leave(parent: str, is_holder: bool = True) -> None:
    """End a sweep that was stopped; one that was refused before its first job has never been.

    Where another process is at the same sweep (`is_holder` is false), its run stays as it is.
    """
    end_left_points(parent)
    if not is_holder:
        return
    end_sweep(parent, "KILLED", [])
    if not read_points(parent):
        forget_sweep(parent)


def show(comparison: Comparison, parent: str) -> str:
    """Print the table and the command that makes the best point the pipeline's choice; returns it, if there is one."""
    print_comparison(comparison)
    best = winner(comparison)
    if best is None:
        warn("No point has finished: there is none to choose.")
        return ""
    record = next(record for record in read_points(parent) if record.run_id == best["run_id"])
    say(f"To make {best['name']} the pipeline's choice and measure it on the test part:")
    command = command_for(record)
    say(f"  {command}")
    return command


def gather(parent: str) -> Comparison:
    """The points of a sweep as a table, and their histories."""
    run = find_sweep(parent)
    assert run is not None
    swept = tuple(json_of(run.data.tags["swept"]))
    records = read_points(parent)
    points = pd.DataFrame([_row(record, swept, run.info.status) for record in records])
    datasets = {record.run.data.tags.get("dataset", "") for record in records if record.run}
    histories = {
        record.run.info.run_id: pd.DataFrame(history(record.run.info.run_id, METRICS))
        for record in records
        if record.run
    }
    on = " and ".join(sorted(filter(None, datasets))) or "no data"
    return Comparison(f"{run.info.run_name} on {on}", points, swept, histories)


def _row(record: PointRecord, swept: tuple[str, ...], sweep_status: str) -> dict[str, Any]:
    values = settings(record.overrides)
    row: dict[str, Any] = {key: values.get(key, "") for key in swept}
    run = record.run
    if run is None:
        status, reason = ("RUNNING", "") if sweep_status == "RUNNING" else ("FAILED", "it never began")
        return {"run_id": "", "name": "", "status": status, "reason": reason, "reused": False} | row
    return {
        "run_id": run.info.run_id,
        "name": run.info.run_name,
        "status": run.info.status,
        "reason": run.data.tags.get(FAILURE, "its process was killed" if run.info.status == "KILLED" else ""),
        "reused": record.reused,
        **row,
        **{key: run.data.metrics.get(key, float("nan")) for key in METRICS},
        "seconds": float(run.data.tags.get(SECONDS, "nan")),
    }
