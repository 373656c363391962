"""The results that are committed in this repository: what a new one is compared with."""

from pathlib import Path
from typing import Any

import yaml

from cifar_pipeline.documents import json_of, yaml_of
from cifar_pipeline.git import GitError, Kind, find_repository, in_commit, last_commit, refused

METRICS, PARAMS = Path("reports/metrics.json"), Path("params.yaml")


def published() -> dict[str, Any]:
    """The newest committed metrics.json with `commit`, `date` and the `experiment` that params.yaml named there.

    Empty where there is no git, or no such file in its commits; `{"error": ...}` where that could not be found out.
    """
    repository = find_repository()
    if repository.kind is Kind.REFUSED:
        return {"error": f"git gives no answer ({repository.reason})"}
    if repository.kind is not Kind.FOUND:
        return {}
    try:
        commit, date = last_commit(METRICS)
        metrics = in_commit(commit, METRICS) if commit else None
        if metrics is None:
            return {}
        return {"commit": commit, "date": date, **_read(metrics, in_commit(commit, PARAMS) or b"")}
    except GitError as error:
        return {"error": f"git gives no answer ({refused(error)})"}


def _read(metrics: bytes, params: bytes) -> dict[str, Any]:
    """What both files say; no `metrics` where the first is not what `evaluate` writes."""
    try:
        values, choices = json_of(metrics), yaml_of(params)
    except (ValueError, yaml.YAMLError) as error:
        return {"error": f"the committed results can't be read ({' '.join(str(error).split())[:200]})"}
    if not isinstance(values, dict):
        return {"error": f"the committed {METRICS} holds no table of values"}
    experiment = choices.get("experiment") if isinstance(choices, dict) else None
    return {"experiment": str(experiment or ""), "metrics": values}
