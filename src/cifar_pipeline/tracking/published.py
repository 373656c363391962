"""The results that are committed in this repository: what a new one is compared with."""

import json
from pathlib import Path
from typing import Any

import yaml

from cifar_pipeline.tracking.lineage import in_commit, last_commit

METRICS, PARAMS = Path("reports/metrics.json"), Path("params.yaml")


def published() -> dict[str, Any]:
    """The newest committed metrics.json with `commit`, `date` and the `experiment` that params.yaml named there.

    Empty where there is no git, or no such file in its commits.
    """
    commit, date = last_commit(METRICS)
    try:
        metrics = json.loads(in_commit(commit, METRICS)) if commit else None
        params = yaml.safe_load(in_commit(commit, PARAMS)) if commit else None
    except (ValueError, yaml.YAMLError):
        return {}
    if not isinstance(metrics, dict):
        return {}
    experiment = params.get("experiment") if isinstance(params, dict) else None
    return {"commit": commit, "date": date, "experiment": str(experiment or ""), "metrics": metrics}
