"""A sweep with `rerun=true` that is killed goes on with that rerun; once it has ended, the next begins anew."""

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
    left: list[Run]
    again: str
    ended: Run
    another: str


def killed(workspace: Workspace, until: str) -> str:
    sweep = workspace.start("python", "src/train.py", *SWEEP)
    sweep.wait_for(until)
    sweep.process.kill()
    return sweep.end(code=-signal.SIGKILL)


def scenario_killed_rerun(workspace: Workspace) -> Rerun:
    first, left = killed(workspace, "[1] epoch 2/3"), workspace.runs()
    again = workspace.train(*SWEEP)
    ended = the_sweep(workspace)
    return Rerun(workspace, first, left, again, ended, killed(workspace, "[0] epoch 1/3"))


@pytest.mark.long
def test_a_killed_rerun_of_a_sweep_repeats_no_trial_that_has_finished_in_it(outcome):
    rerun = outcome(scenario_killed_rerun)
    parent, first, second = rerun.left
    assert [run.info.status for run in rerun.left] == ["RUNNING", "FINISHED", "RUNNING"]
    assert trained(rerun.killed) == [0, 1] and trained(rerun.again) == []
    assert "this rerun of the sweep trained it already" in rerun.again
    assert "[1] Going on from the checkpoint" in rerun.again
    assert rerun.ended.info.status == "FINISHED" and rerun.ended.info.run_id == parent.info.run_id
    assert trials(rerun.ended) == [first.info.run_id, second.info.run_id]
    assert rerun.workspace.logged(second) == [1, 2, 3]


@pytest.mark.long
def test_a_rerun_of_a_sweep_that_has_ended_is_followed_by_a_new_one(outcome):
    rerun = outcome(scenario_killed_rerun)
    assert trained(rerun.another) == [0] and "finished before" not in rerun.another
    runs = children(rerun.workspace, the_sweep(rerun.workspace))
    assert len(runs) == 3 and len({run.data.tags["fingerprint"] for run in runs}) == 2
