"""Experiments of DVC's queue run their own code and configuration, and log to the main database with their names."""

import json
import time
from pathlib import Path

import pytest

from helpers.workspace import Workspace, make_repository


def scenario_queue(workspace: Workspace) -> tuple[Workspace, str]:
    make_repository(workspace)
    workspace.dvc("repro", "preprocess")
    workspace.commit()
    # Uncommitted changes are part of a queued experiment.
    workspace.edit("conf/trainer/debug.yaml", "limit_train_batches: 8", "limit_train_batches: 5")
    workspace.edit(
        "src/cifar_pipeline/stages/train.py",
        "    check_targets(config)\n",
        '    check_targets(config)\n    info("own code")\n',
    )
    workspace.dvc("exp", "run", "--queue", "-S", "optimizer=sgd,adam", "-S", "++overrides.trainer.max_epochs=1")
    workspace.edit("src/cifar_pipeline/stages/train.py", '    info("own code")\n', "")
    workspace.edit("conf/trainer/debug.yaml", "limit_train_batches: 5", "limit_train_batches: 8")
    workspace.dvc("queue", "start", "-j", "2")
    deadline = time.monotonic() + 200
    while (status := workspace.dvc("queue", "status")).count("Success") < 2 and "Failed" not in status:
        assert time.monotonic() < deadline, status
        time.sleep(1)
    tasks = [line.split()[0] for line in status.splitlines()[1:3]]
    output = "".join(workspace.dvc("queue", "logs", task) for task in tasks)
    workspace.dvc("queue", "stop")
    return workspace, output


@pytest.mark.long
def test_queued_experiments_run_their_own_code_and_are_tagged_with_their_names(outcome):
    workspace, output = outcome(scenario_queue)
    assert output.count("own code") == 2
    runs = workspace.runs()
    assert {(run.info.run_name, run.info.status) for run in runs} == {
        ("debug-sgd-cross_entropy-0", "FINISHED"),
        ("debug-adam-cross_entropy-0", "FINISHED"),
    }
    revisions = json.loads(workspace.dvc("exp", "show", "--json"))
    shown = {
        experiment["name"]: experiment["revs"][0]["data"]["metrics"]["reports/metrics.json"]["data"]
        for revision in revisions
        for experiment in revision["experiments"] or []
    }
    assert len(runs) == 2 and {run.data.tags["dvc.experiment"] for run in runs} == set(shown)
    for run in runs:
        name = run.data.tags["dvc.experiment"]
        assert run.data.metrics["test/accuracy"] == shown[name]["test"]["accuracy"]
        assert run.data.params["trainer.limit_train_batches"] == "5"
        assert run.data.tags["git.dirty"] == "true"
        assert run.info.artifact_uri.startswith((workspace.root / "mlruns").as_uri())
        assert list(Path(workspace.mlflow.download_artifacts(run.info.run_id, "")).rglob("config.yaml"))
