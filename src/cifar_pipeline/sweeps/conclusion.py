"""What a sweep came to: its points gathered from MLflow, compared, and the command that makes the best one the choice."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from cifar_pipeline.console import say, warn
from cifar_pipeline.reporting.comparison import Comparison, print_comparison, winner, write
from cifar_pipeline.sweeps.choice import command_for
from cifar_pipeline.tracking.sweeps import PointRecord, end_sweep, find_sweep, history, read_points

METRICS = ["train/loss", "train/accuracy", "val/loss", "val/accuracy"]


def conclude(parent: str, folder: Path) -> bool:
    """Show the comparison, keep it in `folder` and on the parent run, and end that; whether no point failed."""
    comparison = gather(parent)
    show(comparison, parent)
    well = bool((comparison.points["status"] == "FINISHED").all())
    end_sweep(parent, failed=not well, artifacts=write(comparison, folder))
    say(f"Kept in {folder} and on the sweep's run in MLflow (`make ui`).")
    return well


def show(comparison: Comparison, parent: str) -> None:
    """Print the table and, where there is a best point, how to make it the pipeline's choice."""
    print_comparison(comparison)
    best = winner(comparison)
    if best is None:
        warn("No point has finished: there is none to choose.")
        return
    record = next(record for record in read_points(parent) if record.run_id == best["run_id"])
    say(f"To make {best['name']} the pipeline's choice and measure it on the test part:")
    say(f"  {command_for(record)}")


def gather(parent: str) -> Comparison:
    """The points of a sweep as a table, and their histories."""
    run = find_sweep(parent)
    assert run is not None
    swept = tuple(json.loads(run.data.tags["swept"]))
    records = read_points(parent)
    points = pd.DataFrame([_row(record, swept) for record in records])
    datasets = {record.run.data.tags.get("dataset", "") for record in records if record.run}
    histories = {
        record.run.info.run_id: pd.DataFrame(history(record.run.info.run_id, METRICS))
        for record in records
        if record.run
    }
    on = " and ".join(sorted(filter(None, datasets))) or "no data"
    return Comparison(f"{run.info.run_name} on {on}", points, swept, histories)


def _row(record: PointRecord, swept: tuple[str, ...]) -> dict[str, Any]:
    values = dict(override.lstrip("+").split("=", 1) for override in record.overrides)
    row: dict[str, Any] = {key: values.get(key, "") for key in swept}
    run = record.run
    if run is None:
        return {"run_id": "", "name": "", "status": "FAILED", "reason": "it never began", "reused": False} | row
    seconds = ((run.info.end_time or run.info.start_time) - run.info.start_time) / 1000
    return {
        "run_id": run.info.run_id,
        "name": run.info.run_name,
        "status": run.info.status,
        "reason": run.data.tags.get("failure", "its process was killed" if run.info.status == "KILLED" else ""),
        "reused": record.reused,
        **row,
        **{key: run.data.metrics.get(key, float("nan")) for key in METRICS},
        "seconds": seconds,
    }
