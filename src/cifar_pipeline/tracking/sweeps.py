"""Store a sweep in MLflow: a parent run with a tag for each trial, which holds its overrides and the id of its run.

A run that this sweep trained is a child of the parent. A run that existed before is linked by the tag only.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run, RunTag, ViewType
from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

from cifar_pipeline.tracking import provenance
from cifar_pipeline.tracking.client import WORKSPACE_TAG, belongs_to_workspace, close_if_stale, connect, get_run_or_none
from cifar_pipeline.tracking.provenance import DESCRIPTION_TAG
from cifar_pipeline.tracking.trial import FAILURE_TAG, PARENT_KEY, PRUNED_TAG, RERUN, SWEEP_RERUN, Trial
from cifar_pipeline.utils.paths import workspace_id
from cifar_pipeline.utils.safe_io import parse_json

TRIAL_TAG_PREFIX = "trial."
# The last line of a description that would be longer than MLflow allows.
LEFT_OUT = "More is in the artifact comparison.md."


@dataclass(frozen=True)
class TrialRecord:
    """A trial as the parent run records it.

    Attributes:
        run: None before the trial has one.
        reused: whether the run existed before this sweep.
    """

    number: int
    overrides: tuple[str, ...]
    run: Run | None
    reused: bool

    @property
    def run_id(self) -> str:
        """The id of the trial's run; empty if it has none."""
        return str(self.run.info.run_id) if self.run else ""


def open_sweep(
    fingerprint: str,
    name: str,
    metadata: Mapping[str, Any],
    rerun: bool = False,
    labels: Mapping[str, str] | None = None,
) -> tuple[str, str]:
    """Resume the parent run of the sweep with this fingerprint, or create it; set it RUNNING, and `labels` as its tags.

    Returns:
        The run's id and, with `rerun`, the id of the sweep's unfinished rerun or of a new one; empty otherwise.

    Raises:
        UserError: MLFLOW_RUN_ID names another run.
    """
    client, experiment = connect()
    tags = {"sweep": fingerprint, **{key: str(value) for key, value in metadata.items()}, **provenance.tags()}
    tags |= {WORKSPACE_TAG: workspace_id(), **(labels or {})}
    runs = client.search_runs([experiment], f"tags.sweep = '{fingerprint}'", ViewType.ACTIVE_ONLY, max_results=1)
    parent = runs[0] if runs else None
    if parent and parent.info.status == "RUNNING" and not belongs_to_workspace(parent):
        parent = None  # Another workspace runs the same sweep.
    provenance.reject_foreign_run(parent.info.run_id if parent else "")
    rerun_id = ""
    if rerun:
        rerun_id = tags[RERUN] = (parent.data.tags.get(RERUN) if parent else None) or uuid.uuid4().hex
    if parent is None:
        return str(client.create_run(experiment, run_name=name, tags=tags).info.run_id), rerun_id
    client.update_run(parent.info.run_id, status="RUNNING")
    client.log_batch(parent.info.run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])
    return str(parent.info.run_id), rerun_id


def record_trial(trial: Trial, run_id: str = "") -> None:
    """Record a trial and, once it has one, its run on the parent.

    A placeholder run, which only recorded an earlier failure of the trial, is deleted.
    """
    client, _ = connect()
    previous = _read_record(client, trial)
    if previous and previous.run and previous.run_id != run_id and "fingerprint" not in previous.run.data.tags:
        client.delete_run(previous.run_id)
    client.set_tag(trial.parent, _tag_of(trial.number), json.dumps({"overrides": trial.overrides, "run": run_id}))


def record_failure(trial: Trial, reason: str) -> None:
    """Record why a trial failed: on its run, or on a FAILED placeholder if it has none."""
    client, experiment = connect()
    record = _read_record(client, trial)
    if record and record.run and not record.reused:
        run_id = record.run_id
    else:
        tags = {PARENT_KEY: trial.parent, **provenance.tags()}
        run_id = client.create_run(experiment, run_name=trial.label or trial.title, tags=tags).info.run_id
        client.set_terminated(run_id, "FAILED")
        record_trial(trial, run_id)
    client.set_tag(run_id, FAILURE_TAG, reason[:5000])


def trial_run(trial: Trial) -> Run | None:
    """Fetch the run of a trial; None if it has none."""
    client, _ = connect()
    record = _read_record(client, trial)
    return record.run if record else None


def tag_sweep(parent: str, tags: Mapping[str, str]) -> None:
    """Set tags of a sweep's parent run."""
    client, _ = connect()
    client.log_batch(parent, tags=[RunTag(key, value) for key, value in tags.items()])


def describe_sweep(parent: str, heading: str, lines: Sequence[str]) -> None:
    """Add lines of Markdown below `heading` to the description of a sweep's parent run, or replace those below it.

    Lines that exceed MLflow's limit for a tag are left out.
    """
    client, _ = connect()
    description = client.get_run(parent).data.tags.get(DESCRIPTION_TAG, "").partition(heading)[0].rstrip()
    parts = [*([description, ""] if description else []), heading, ""]
    length = sum(len(part) + 1 for part in parts) + len(LEFT_OUT)
    for line in lines:
        length += len(line) + 1
        if length > MAX_TAG_VAL_LENGTH:
            parts += ["", LEFT_OUT]
            break
        parts.append(line)
    client.set_tag(parent, DESCRIPTION_TAG, "\n".join(parts))


def read_trials(parent: str) -> list[TrialRecord]:
    """Read the trials of a sweep, ordered by number."""
    client, _ = connect()
    tags = sorted(client.get_run(parent).data.tags.items())
    return [record for record in (_parse_record(client, parent, key, text) for key, text in tags) if record]


def find_sweep(name: str) -> Run | None:
    """Find a sweep's parent run by id, fingerprint or name; the newest one for an empty name."""
    client, experiment = connect()
    runs = client.search_runs([experiment], "tags.sweep LIKE '%'", order_by=["attributes.start_time DESC"])
    matching = (run for run in runs if name in ("", run.info.run_id, run.data.tags["sweep"], run.info.run_name))
    return next(matching, None)


def history(run_id: str, keys: list[str]) -> list[dict[str, float]]:
    """Read metrics of a run, one row per epoch."""
    client, _ = connect()
    rows: dict[int, dict[str, float]] = {}
    for key in keys:
        for metric in client.get_metric_history(run_id, key):
            rows.setdefault(metric.step, {"epoch": float(metric.step)})[key] = metric.value
    return [rows[step] for step in sorted(rows)]


def close_stale_trials(parent: str) -> None:
    """End the trials' runs whose process was killed."""
    client, _ = connect()
    for record in read_trials(parent):
        if record.run is not None:
            close_if_stale(client, record.run)


def end_sweep(parent: str, status: str, artifacts: list[Path]) -> None:
    """Log the comparison's files to the parent run and end it."""
    client, _ = connect()
    for path in artifacts:
        client.log_artifact(parent, str(path))
    rerun = client.get_run(parent).data.tags.get(RERUN)
    if rerun and status == "FINISHED" and all(_is_finished_in(record, rerun) for record in read_trials(parent)):
        client.delete_tag(parent, RERUN)
    client.set_terminated(parent, status)


def _is_finished_in(record: TrialRecord, rerun: str) -> bool:
    """Whether the trial finished, or was pruned, in this rerun of the sweep."""
    run = record.run
    if run is None or run.data.tags.get(SWEEP_RERUN) != rerun:
        return False
    return run.info.status == "FINISHED" or PRUNED_TAG in run.data.tags


def delete_sweep(parent: str) -> None:
    """Delete the parent run of a sweep without trials."""
    client, _ = connect()
    client.delete_run(parent)


def _tag_of(number: int) -> str:
    return f"{TRIAL_TAG_PREFIX}{number:04}"


def _read_record(client: MlflowClient, trial: Trial) -> TrialRecord | None:
    """Read the record of a trial from the parent; None before it has one."""
    key = _tag_of(trial.number)
    return _parse_record(client, trial.parent, key, client.get_run(trial.parent).data.tags.get(key, ""))


def _parse_record(client: MlflowClient, parent: str, key: str, text: str) -> TrialRecord | None:
    """Parse a tag of the parent; None if it is not a trial's."""
    if not key.startswith(TRIAL_TAG_PREFIX) or not text:
        return None
    content = parse_json(text)
    run = get_run_or_none(client, content["run"])
    reused = run is not None and run.data.tags.get(PARENT_KEY) != parent
    return TrialRecord(int(key.removeprefix(TRIAL_TAG_PREFIX)), tuple(content["overrides"]), run, reused)
