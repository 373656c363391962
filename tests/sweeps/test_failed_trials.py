"""A failing trial does not stop the others, and the reason is printed and recorded."""

from dataclasses import dataclass

import pytest
from mlflow.entities import Run
from sweep_runs import artifact, children, folder, rows, the_sweep, trained

from helpers.workspace import Workspace

SWEEP = ("-m", "loss=cross_entropy,raising", "optimizer.lr=0.001,1e9,-1", "trainer.max_epochs=1")
DIVERGED = "Loss became NaN or infinite in epoch 1 (lr 1e+09). Lower optimizer.lr"
REFUSED = "optimizer.lr=-1 is not allowed; it must be a number above 0."


@dataclass(frozen=True)
class Failed:
    workspace: Workspace
    output: str
    sweep: Run
    jobs: list[Run]
    markdown: str


def scenario_failing(workspace: Workspace) -> Failed:
    output = workspace.train(*SWEEP, code=1)
    sweep = the_sweep(workspace)
    jobs, markdown = children(workspace, sweep), artifact(workspace, sweep, "comparison.md").decode()
    return Failed(workspace, output, sweep, jobs, markdown)


def test_the_other_trials_continue_after_a_failure(outcome):
    failed = outcome(scenario_failing)
    assert [job.info.status for job in failed.jobs] == ["FINISHED"] + 5 * ["FAILED"]
    assert failed.sweep.info.status == "FAILED"
    assert "[0] epoch 1/1" in failed.output and "[5] Trial 6/6: loss=raising optimizer.lr=-1" in failed.output


def test_each_failed_trial_is_named_with_its_reason(outcome):
    failed = outcome(scenario_failing)
    _, diverged, refused, raised, *_ = failed.jobs
    path = f"{folder(failed.output)}/3/error.txt"
    raising = f"LookupError: no such label (traceback: {failed.workspace.root / path})"
    reasons = {"1": DIVERGED, "2": REFUSED, "3": raising}
    for number, reason in reasons.items():
        assert f"[{number}] {reason}" in failed.output
    for job, reason in zip((diverged, refused, raised), reasons.values(), strict=True):
        assert job.data.tags["failure"].startswith(reason)
        assert f"{job.info.run_name} failed: {reason.rstrip('.')}" in failed.output
        assert f"{job.info.run_name} failed: {reason.rstrip('.')}" in failed.markdown
    assert refused.info.run_name == "loss=cross_entropy optimizer.lr=-1"
    assert "own.py" in failed.workspace.read(path) and "LookupError" in failed.workspace.read(path)
    assert "Traceback" not in failed.output


def test_a_failed_sweep_still_has_a_best_trial(outcome):
    failed = outcome(scenario_failing)
    assert "To run debug-sgd-cross_entropy-0 optimizer.lr=0.001 in the pipeline" in failed.output


def scenario_fixed(workspace: Workspace) -> tuple[Failed, str]:
    failed = scenario_failing(workspace)
    workspace.write("labels.txt", "the missing label")  # not an edit of the code, which would be another sweep
    return failed, workspace.train(*SWEEP, code=1)


@pytest.mark.long
def test_the_same_command_tries_failed_trials_again(outcome):
    failed, again = outcome(scenario_fixed)
    assert "[0] finished before" in again and trained(again) == [3]
    assert all(f"[{number}] {DIVERGED}" in again for number in (1, 4))
    sweep = the_sweep(failed.workspace)
    assert sweep.info.run_id == failed.sweep.info.run_id
    table = rows(failed.workspace, sweep)
    assert [row["status"] for row in table] == ["FINISHED", "FAILED", "FAILED", "FINISHED", "FAILED", "FAILED"]
    assert table[3]["reason"] == "" and table[1]["reason"].startswith(DIVERGED)
    # A trial has one run, however often it fails.
    jobs = children(failed.workspace, sweep)
    assert len(jobs) == 6 and {job.info.run_id for job in jobs} == {row["run_id"] for row in table}
    assert "failure" not in next(job for job in jobs if job.info.run_id == table[3]["run_id"]).data.tags
