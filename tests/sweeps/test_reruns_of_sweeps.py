"""A killed sweep with `rerun=true` resumes that rerun; after it has finished, `rerun=true` starts another."""

import signal
from dataclasses import dataclass

import pytest
from mlflow.entities import Run
from sweep_runs import children, the_sweep, trained, trials

from helpers.workspace import Workspace

SWEEP = ("-m", "optimizer=sgd,adam", "loss=slow", "trainer.max_epochs=3", "rerun=true")


@dataclass(frozen=True)
class Rerun:
    workspace: Workspace
    killed: str
    runs_left: list[Run]
    again: str
    ended: Run
    another: str


def run_and_kill(workspace: Workspace, until: str) -> str:
    sweep = workspace.start("python", "src/train.py", *SWEEP)
    sweep.wait_for(until)
    sweep.process.kill()
    return sweep.end(code=-signal.SIGKILL)


def scenario_killed_rerun(workspace: Workspace) -> Rerun:
    first, runs_left = run_and_kill(workspace, "[1] epoch 2/3"), workspace.runs()
    again = workspace.train(*SWEEP)
    ended = the_sweep(workspace)
    return Rerun(workspace, first, runs_left, again, ended, run_and_kill(workspace, "[0] epoch 1/3"))


@pytest.mark.long
def test_a_killed_rerun_of_a_sweep_does_not_repeat_trials_that_finished_in_it(outcome):
    rerun = outcome(scenario_killed_rerun)
    parent, first, second = rerun.runs_left
    assert [run.info.status for run in rerun.runs_left] == ["RUNNING", "FINISHED", "RUNNING"]
    assert trained(rerun.killed) == [0, 1] and trained(rerun.again) == []
    assert "this rerun of the sweep trained it already" in rerun.again
    assert "[1] Resuming from checkpoint" in rerun.again
    assert rerun.ended.info.status == "FINISHED" and rerun.ended.info.run_id == parent.info.run_id
    assert trials(rerun.ended) == [first.info.run_id, second.info.run_id]
    assert rerun.workspace.logged(second) == [1, 2, 3]


@pytest.mark.long
def test_after_a_finished_rerun_of_a_sweep_another_one_starts(outcome):
    rerun = outcome(scenario_killed_rerun)
    assert trained(rerun.another) == [0] and "finished before" not in rerun.another
    runs = children(rerun.workspace, the_sweep(rerun.workspace))
    assert len(runs) == 3 and len({run.data.tags["fingerprint"] for run in runs}) == 2
