"""The printed command runs the best trial in the pipeline, with the same weights."""

import re
import shlex
import shutil
from dataclasses import dataclass

import pytest
from sweep_runs import children, folder, the_sweep, trials

from helpers.workspace import Workspace, make_repository

SWEEP = ("-m", "optimizer.lr=0.001,0.03", "trainer.max_epochs=3")


@dataclass(frozen=True)
class Best:
    workspace: Workspace
    weights: bytes
    command: list[str]
    output: str


def run_sweep(workspace: Workspace) -> Best:
    """Run a sweep in a git repository; return its command."""
    make_repository(workspace)
    output = workspace.train(*SWEEP)
    name, command = re.findall(r"^To run (.*) in the pipeline.*\n  (dvc exp run .*)$", output, re.MULTILINE)[0]
    sweep = the_sweep(workspace)
    (best,) = [job for job in children(workspace, sweep) if job.info.run_name == name]
    number = trials(sweep).index(best.info.run_id)
    weights = workspace.model(f"{folder(output)}/{number}/models")
    return Best(workspace, weights, shlex.split(command), output)


def scenario_retrained(workspace: Workspace) -> Best:
    best_trial = run_sweep(workspace)
    shutil.rmtree(workspace.root / ".cache" / "trainings")
    return Best(workspace, best_trial.weights, best_trial.command, workspace.run(*best_trial.command))


@pytest.mark.long
def test_the_printed_experiment_trains_to_the_same_weights(outcome):
    best_trial = outcome(scenario_retrained)
    assert "epoch 3/3" in best_trial.output
    assert "++overrides.runtime.threads=1" in best_trial.command
    assert best_trial.workspace.model() == best_trial.weights
    sweep = the_sweep(best_trial.workspace)
    # The test metrics are logged to the trial's run.
    best = next(job for job in children(best_trial.workspace, sweep) if "test/accuracy" in job.data.metrics)
    assert best.data.metrics["test/accuracy"] == best_trial.workspace.json("reports/metrics.json")["test"]["accuracy"]
    assert best.info.run_id == best_trial.workspace.json("models/run.json")["id"] and best.info.status == "FINISHED"
    assert len(children(best_trial.workspace, sweep)) == 2


def scenario_reused(workspace: Workspace) -> Best:
    best_trial = run_sweep(workspace)
    return Best(workspace, best_trial.weights, best_trial.command, workspace.run(*best_trial.command))


@pytest.mark.long
def test_the_printed_experiment_reuses_the_cached_weights(outcome):
    best_trial = outcome(scenario_reused)
    assert "has already finished: its weights are reused" in best_trial.output and "epoch" not in best_trial.output
    assert best_trial.workspace.model() == best_trial.weights
