"""A sweep in MLflow: one parent run, which knows each of its trials, whoever's run that is.

A trial's own run is the parent's child where this sweep trained it; a run that was there before is linked, not moved.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run, RunTag, ViewType

from cifar_pipeline.tracking import provenance
from cifar_pipeline.tracking.client import connect, get_run_or_none
from cifar_pipeline.tracking.stale_runs import WORKSPACE_TAG, belongs_to_workspace, close_if_stale
from cifar_pipeline.tracking.trial import FAILURE_TAG, PARENT_KEY, RERUN, SWEEP_RERUN, Trial
from cifar_pipeline.utils.paths import workspace_id
from cifar_pipeline.utils.safe_io import parse_json

TRIAL_TAG = "trial."


@dataclass(frozen=True)
class TrialRecord:
    """What is known about a trial: its overrides and, once there is one, its run."""

    number: int
    overrides: tuple[str, ...]
    run: Run | None
    reused: bool

    @property
    def run_id(self) -> str:
        """The id of the trial's run; empty where it came to none."""
        return str(self.run.info.run_id) if self.run else ""


def open_sweep(sweep: str, name: str, facts: Mapping[str, Any], rerun: bool = False) -> tuple[str, str]:
    """Open the parent run of the sweep with this fingerprint: the one of before, or a new one. It is RUNNING then.

    Returns its id and, with `rerun`, the id of the sweep's rerun: the one that was begun and in which not every trial
    has finished yet, or a new one.
    """
    client, experiment = connect()
    tags = {"sweep": sweep, **{key: str(value) for key, value in facts.items()}, **provenance.tags()}
    tags[WORKSPACE_TAG] = workspace_id()
    runs = client.search_runs([experiment], f"tags.sweep = '{sweep}'", ViewType.ACTIVE_ONLY, max_results=1)
    found = runs[0] if runs else None
    if found and found.info.status == "RUNNING" and not belongs_to_workspace(found):
        found = None  # Another workspace is at the same sweep.
    current = (found.data.tags.get(RERUN) if found else None) or uuid.uuid4().hex
    if rerun:
        tags[RERUN] = current
    if found:
        client.update_run(found.info.run_id, status="RUNNING")
        client.log_batch(found.info.run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])
        return str(found.info.run_id), current if rerun else ""
    return str(client.create_run(experiment, run_name=name, tags=tags).info.run_id), current if rerun else ""


def record_trial(point: Trial, run_id: str = "") -> None:
    """Let the parent know the trial and, once it is open, the trial's run.

    A run that only says why the trial failed before, where it came to none of its own, has had its time.
    """
    client, _ = connect()
    key = _key(point.number)
    before = _record(client, point.parent, key, client.get_run(point.parent).data.tags.get(key, ""))
    if before and before.run and before.run_id != run_id and "fingerprint" not in before.run.data.tags:
        client.delete_run(before.run_id)
    client.set_tag(point.parent, key, json.dumps({"overrides": point.overrides, "run": run_id}))


def record_failure(point: Trial, reason: str) -> None:
    """Note why a trial failed: on its run, or on a FAILED one of its own where it came to none."""
    client, experiment = connect()
    key = _key(point.number)
    record = _record(client, point.parent, key, client.get_run(point.parent).data.tags[key])
    if record and record.run and not record.reused:
        run_id = record.run_id
    else:
        tags = {PARENT_KEY: point.parent, **provenance.tags()}
        run_id = client.create_run(experiment, run_name=point.label or point.place, tags=tags).info.run_id
        client.set_terminated(run_id, "FAILED")
        record_trial(point, run_id)
    client.set_tag(run_id, FAILURE_TAG, reason[:5000])


def read_trials(parent: str) -> list[TrialRecord]:
    """Every trial of the sweep, in the order of their numbers."""
    client, _ = connect()
    tags = sorted(client.get_run(parent).data.tags.items())
    return [record for record in (_record(client, parent, key, text) for key, text in tags) if record]


def find_sweep(wanted: str) -> Run | None:
    """The parent run with this id, sweep fingerprint or name; the newest sweep for an empty text."""
    client, experiment = connect()
    runs = client.search_runs([experiment], "tags.sweep LIKE '%'", order_by=["attributes.start_time DESC"])
    matching = (run for run in runs if wanted in ("", run.info.run_id, run.data.tags["sweep"], run.info.run_name))
    return next(matching, None)


def history(run_id: str, keys: list[str]) -> list[dict[str, float]]:
    """A row per epoch of these metrics of a run."""
    client, _ = connect()
    rows: dict[int, dict[str, float]] = {}
    for key in keys:
        for metric in client.get_metric_history(run_id, key):
            rows.setdefault(metric.step, {"epoch": float(metric.step)})[key] = metric.value
    return [rows[step] for step in sorted(rows)]


def close_stale_trials(parent: str) -> None:
    """End the runs of trials whose process is gone."""
    client, _ = connect()
    for record in read_trials(parent):
        if record.run is not None:
            close_if_stale(client, record.run)


def end_sweep(parent: str, status: str, artifacts: list[Path]) -> None:
    """Put the comparison on the parent and end it."""
    client, _ = connect()
    for path in artifacts:
        client.log_artifact(parent, str(path))
    rerun = client.get_run(parent).data.tags.get(RERUN)
    if rerun and status == "FINISHED" and all(_is_finished_in(record, rerun) for record in read_trials(parent)):
        client.delete_tag(parent, RERUN)
    client.set_terminated(parent, status)


def _is_finished_in(record: TrialRecord, rerun: str) -> bool:
    """Whether a trial has finished in this rerun of the sweep."""
    run = record.run
    return run is not None and run.info.status == "FINISHED" and run.data.tags.get(SWEEP_RERUN) == rerun


def delete_sweep(parent: str) -> None:
    """Drop a sweep that has come to nothing."""
    client, _ = connect()
    client.delete_run(parent)


def _key(number: int) -> str:
    return f"{TRIAL_TAG}{number:04}"


def _record(client: MlflowClient, parent: str, key: str, text: str) -> TrialRecord | None:
    """What a tag of the parent says about a trial; None where it is about something else."""
    if not key.startswith(TRIAL_TAG) or not text:
        return None
    content = parse_json(text)
    run = get_run_or_none(client, content["run"])
    reused = run is not None and run.data.tags.get(PARENT_KEY) != parent
    return TrialRecord(int(key.removeprefix(TRIAL_TAG)), tuple(content["overrides"]), run, reused)
