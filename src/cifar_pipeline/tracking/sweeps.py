"""A sweep in MLflow: one parent run, which knows each of its points, whoever's run that is.

A point's own run is the parent's child where this sweep trained it; a run that was there before is linked, not moved.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run, RunTag, ViewType
from mlflow.exceptions import MlflowException

from cifar_pipeline.tracking import lineage
from cifar_pipeline.tracking.points import DEATHS, PARENT, Point
from cifar_pipeline.tracking.store import connect

POINT = "point."


@dataclass(frozen=True)
class PointRecord:
    """What is known about a point: its overrides and, once there is one, its run."""

    number: int
    overrides: tuple[str, ...]
    run: Run | None
    reused: bool

    @property
    def run_id(self) -> str:
        """The id of the point's run; empty where it came to none."""
        return str(self.run.info.run_id) if self.run else ""


def open_sweep(sweep: str, name: str, facts: Mapping[str, Any]) -> str:
    """The id of the parent run of the sweep with this identity, RUNNING: the one of before, or a new one."""
    client, experiment = connect()
    runs = client.search_runs([experiment], f"tags.sweep = '{sweep}'", ViewType.ACTIVE_ONLY, max_results=1)
    if runs:
        client.update_run(runs[0].info.run_id, status="RUNNING")
        return str(runs[0].info.run_id)
    tags = {"sweep": sweep, **{key: str(value) for key, value in facts.items()}, **lineage.tags()}
    return str(client.create_run(experiment, run_name=name, tags=tags).info.run_id)


def note_point(point: Point, run_id: str = "") -> None:
    """Let the parent know the point and, once it is open, the point's run."""
    client, _ = connect()
    content = json.dumps({"overrides": point.overrides, "run": run_id})
    client.set_tag(point.parent, f"{POINT}{point.number:04}", content)


def fail_point(point: Point, name: str, reason: str) -> None:
    """Note why a point failed: on its run, or on a FAILED one of its own where it came to none."""
    client, experiment = connect()
    record = next(record for record in read_points(point.parent) if record.number == point.number)
    if record.run is None or record.reused:
        tags = {PARENT: point.parent, **lineage.tags()}
        run_id = client.create_run(experiment, run_name=name, tags=tags).info.run_id
        client.set_terminated(run_id, "FAILED")
        note_point(point, run_id)
    else:
        run_id = record.run.info.run_id
    client.set_tag(run_id, "failure", reason[:5000])


def read_points(parent: str) -> list[PointRecord]:
    """Every point of the sweep, in the order of their numbers."""
    client, _ = connect()
    records = []
    for key, text in sorted(client.get_run(parent).data.tags.items()):
        if key.startswith(POINT):
            content = json.loads(text)
            run = _run(client, content["run"])
            reused = run is not None and run.data.tags.get(PARENT) != parent
            records.append(PointRecord(int(key.removeprefix(POINT)), tuple(content["overrides"]), run, reused))
    return records


def find_sweep(wanted: str) -> Run | None:
    """The parent run with this id, sweep identity or name; the newest sweep for an empty text."""
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


def end_sweep(parent: str, failed: bool, artifacts: list[Path]) -> None:
    """Put the comparison on the parent and end it; points whose process is gone are no longer RUNNING."""
    client, _ = connect()
    for record in read_points(parent):
        if record.run is not None and record.run.info.status == "RUNNING":
            deaths = int(record.run.data.tags.get(DEATHS, 0)) + 1
            client.set_tag(record.run.info.run_id, DEATHS, deaths)
            client.set_terminated(record.run.info.run_id, "KILLED")
    for path in artifacts:
        client.log_artifact(parent, str(path))
    client.set_terminated(parent, "FAILED" if failed else "FINISHED")


def tag_parent(parent: str, values: Mapping[str, Any]) -> None:
    """Add facts about the whole sweep to its parent run."""
    client, _ = connect()
    client.log_batch(parent, tags=[RunTag(key, str(value)) for key, value in values.items()])


def _run(client: MlflowClient, run_id: str) -> Run | None:
    if not run_id:
        return None
    try:
        return client.get_run(run_id)
    except MlflowException:
        return None
