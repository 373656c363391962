"""What a sweep came to: its trials gathered from MLflow, compared, and the command that chooses the best one.

The command that makes a trial of a sweep what the pipeline runs.
"""

import shlex
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from cifar_pipeline.config.params import is_params_key, to_yaml_inline
from cifar_pipeline.reporting.sweep_comparison import Comparison, winner
from cifar_pipeline.reporting.sweep_report import print_comparison, write
from cifar_pipeline.tracking.sweeps import (
    TrialRecord,
    close_stale_trials,
    delete_sweep,
    end_sweep,
    find_sweep,
    history,
    read_trials,
)
from cifar_pipeline.tracking.trial import FAILURE_TAG, SECONDS_TAG, parse_overrides
from cifar_pipeline.utils.console import info, status, warning
from cifar_pipeline.utils.git import is_in_repository
from cifar_pipeline.utils.safe_io import parse_json

# What a job was started with that says nothing about its training.
NON_TRAINING_GROUPS = ("hydra", "launcher", "runtime", "rerun", "sweep")


def reproduce_command(record: TrialRecord) -> str:
    """`dvc exp run -S ...` with the trial's choices; where there is no git, the lines to write in params.yaml.

    The number of threads and the engine are named, because weights are equal bit for bit with the same only.
    """
    assert record.run is not None
    values = {
        key: value
        for key, value in parse_overrides(record.overrides).items()
        if key.partition(".")[0] not in NON_TRAINING_GROUPS
    }
    for key in ("threads", "engine"):
        used = record.run.data.tags.get(key, "auto")
        # Several one after the other, where the training was broken off, can't be asked for.
        values[f"runtime.{key}"] = "auto" if "," in used else used
    if is_in_repository():
        return shlex.join(
            ["dvc", "exp", "run", *(part for item in values.items() for part in ("-S", dvc_override(*item)))]
        )
    params = {key: value for key, value in values.items() if is_params_key(key)}
    nested = [f"{key}={value}" for key, value in values.items() if not is_params_key(key)]
    if nested:
        params["overrides"] = to_yaml_inline(OmegaConf.to_container(OmegaConf.from_dotlist(nested)))
    lines = "; ".join(f"{key}: {value}" for key, value in params.items())
    return f"dvc repro, with these lines in params.yaml: {lines}"


def dvc_override(key: str, value: str) -> str:
    """How DVC writes a value of params.yaml."""
    return f"{key}={value}" if is_params_key(key) else f"++overrides.{key}={value}"


METRICS = ["train/loss", "train/accuracy", "val/loss", "val/accuracy"]


def finish_sweep(parent: str, folder: Path) -> bool:
    """Show the comparison, keep it in `folder` and on the parent run, and end that; whether no trial failed."""
    status("Comparing the trials")
    close_stale_trials(parent)
    comparison = load_comparison(parent)
    command = print_summary(comparison, parent)
    well = bool((comparison.trials["status"] == "FINISHED").all())
    status("Drawing the comparison and its page")
    end_sweep(parent, "FINISHED" if well else "FAILED", write(comparison, folder, command))
    info(f"Kept in {folder} and on the sweep's run in MLflow (`make ui`); {folder / 'compare.html'} is its page.")
    return well


def abort_sweep(parent: str, is_holder: bool = True) -> None:
    """End a sweep that was stopped; one that was refused before its first job has never been.

    Where another process is at the same sweep (`is_holder` is false), its run stays as it is.
    """
    close_stale_trials(parent)
    if not is_holder:
        return
    end_sweep(parent, "KILLED", [])
    if not read_trials(parent):
        delete_sweep(parent)


def print_summary(comparison: Comparison, parent: str) -> str:
    """Print the table and the command that makes the best trial the pipeline's choice; returns it, if there is one."""
    print_comparison(comparison)
    best = winner(comparison)
    if best is None:
        warning("No trial has finished: there is none to choose.")
        return ""
    record = next(record for record in read_trials(parent) if record.run_id == best["run_id"])
    info(f"To make {best['name']} the pipeline's choice and measure it on the test part:")
    command = reproduce_command(record)
    info(f"  {command}")
    return command


def load_comparison(parent: str) -> Comparison:
    """The trials of a sweep as a table, and their histories."""
    run = find_sweep(parent)
    assert run is not None
    swept = tuple(parse_json(run.data.tags["swept"]))
    records = read_trials(parent)
    points = pd.DataFrame([_row(record, swept, run.info.status) for record in records])
    datasets = {record.run.data.tags.get("dataset", "") for record in records if record.run}
    histories = {
        record.run.info.run_id: pd.DataFrame(history(record.run.info.run_id, METRICS))
        for record in records
        if record.run
    }
    on = " and ".join(sorted(filter(None, datasets))) or "no data"
    return Comparison(f"{run.info.run_name} on {on}", points, swept, histories)


def _row(record: TrialRecord, swept: tuple[str, ...], sweep_status: str) -> dict[str, Any]:
    values = parse_overrides(record.overrides)
    row: dict[str, Any] = {key: values.get(key, "") for key in swept}
    run = record.run
    if run is None:
        status, reason = ("RUNNING", "") if sweep_status == "RUNNING" else ("FAILED", "it never began")
        return {"run_id": "", "name": "", "status": status, "reason": reason, "reused": False} | row
    return {
        "run_id": run.info.run_id,
        "name": run.info.run_name,
        "status": run.info.status,
        "reason": run.data.tags.get(FAILURE_TAG, "its process was killed" if run.info.status == "KILLED" else ""),
        "reused": record.reused,
        **row,
        **{key: run.data.metrics.get(key, float("nan")) for key in METRICS},
        "seconds": float(run.data.tags.get(SECONDS_TAG, "nan")),
    }
