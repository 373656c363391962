"""A sweep whose process is killed is taken up by typing the same command again."""

import signal
from dataclasses import dataclass

import pytest
from mlflow.entities import Run
from sweep_runs import children, rows, sweeps, the_sweep, trained, trials

from cifar_pipeline.sweeps.summary import load_comparison, print_summary
from cifar_pipeline.tracking.sweeps import find_sweep
from helpers.workspace import Workspace

SWEEP = ("-m", "optimizer=sgd,adam,adamw", "loss=slow", "trainer.max_epochs=3")
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


@dataclass(frozen=True)
class Killed:
    workspace: Workspace
    said: str
    left: list[Run]
    copy: Workspace
    again: str


def scenario_killed(workspace: Workspace) -> Killed:
    sweep = workspace.start("python", "src/train.py", *SWEEP)
    sweep.wait_for("[1] epoch 2/3")
    sweep.process.kill()
    said = sweep.end(code=-signal.SIGKILL)
    left = workspace.runs()
    copy = workspace.copy(workspace.root.with_name("as it was left"))
    return Killed(workspace, said, left, copy, workspace.train(*SWEEP))


def test_a_killed_sweep_is_taken_up_where_it_was(outcome):
    killed = outcome(scenario_killed)
    parent, first, second = killed.left
    assert [run.info.status for run in (parent, first, second)] == ["RUNNING", "FINISHED", "RUNNING"]
    assert trained(killed.said) == [0, 1] and trained(killed.again) == [2]
    assert "[0] finished before" in killed.again and "[1] Going on from the checkpoint" in killed.again

    sweep = the_sweep(killed.workspace)
    jobs = children(killed.workspace, sweep)
    assert sweep.info.run_id == parent.info.run_id
    assert [job.info.run_id for job in jobs[:2]] == [first.info.run_id, second.info.run_id]
    assert {run.info.status for run in killed.workspace.runs()} == {"FINISHED"}
    assert all(killed.workspace.logged(job) == [1, 2, 3] for job in jobs) and len(jobs) == 3


def test_a_killed_sweep_is_compared_as_far_as_it_came(outcome, inside, capsys):
    inside(outcome(scenario_killed).copy)
    sweep = find_sweep("")
    assert sweep
    print_summary(load_comparison(sweep.info.run_id), sweep.info.run_id)  # what src/report.py sweep does
    compared = capsys.readouterr().out
    assert "optimizer=sgd,adam,adamw on digits" in compared
    assert "finished" in compared and "running" in compared and "adamw" not in compared.partition("rank")[2]
    assert "To make debug-sgd-slow-0 the pipeline's choice" in compared


def scenario_stopped(workspace: Workspace) -> Workspace:
    sweep = workspace.start("python", "src/train.py", *SWEEP)
    sweep.wait_for("[1] epoch 1/3")
    sweep.process.send_signal(signal.SIGINT)
    said = sweep.end(code=128 + signal.SIGINT)
    assert said.splitlines()[-1].startswith("Stopped in epoch ") and "Traceback" not in said
    return workspace


@pytest.mark.long
def test_a_sweep_stopped_by_hand_leaves_nothing_running(outcome):
    workspace = outcome(scenario_stopped)
    assert [run.info.status for run in workspace.runs()] == ["KILLED", "FINISHED", "KILLED"]
    assert "crashes" not in workspace.runs()[2].data.tags


def scenario_deadly(workspace: Workspace) -> tuple[Workspace, str]:
    words = ("-m", "loss=cross_entropy,deadly,mse")
    for _ in range(2):
        workspace.train(*words, code=-signal.SIGKILL)
    return workspace, workspace.train(*words, code=1)


@pytest.mark.long
def test_a_trial_that_has_killed_its_process_twice_is_passed_over(outcome):
    workspace, said = outcome(scenario_deadly)
    assert workspace.read("deaths.txt") == "once more once more "
    assert "debug-sgd-deadly-0 failed: It has killed its process 2 times and is passed over" in said
    table = rows(workspace, the_sweep(workspace))
    assert [row["status"] for row in table] == ["FINISHED", "FAILED", "FINISHED"]
    assert "RUNNING" not in {run.info.status for run in workspace.runs()}


def scenario_joblib(workspace: Workspace) -> tuple[Workspace, list[str]]:
    words = ("-m", "loss=deadly,slow,cross_entropy,mse", "trainer.max_epochs=20", *JOBLIB)
    said = []
    for _ in range(3):
        said.append(workspace.train(*words, code=1))
    return workspace, said


@pytest.mark.long
def test_a_killed_worker_ends_the_sweep_with_a_sentence_and_the_guilty_trial_alone_is_passed_over(outcome):
    workspace, said = outcome(scenario_joblib)
    ended = "A job's process was killed: the same command typed again does the rest."
    assert [text.splitlines()[-1] == ended for text in said] == [True, True, False]
    assert "Traceback" not in "".join(said)
    assert "debug-sgd-deadly-0 was killed: its process was killed." in said[0]
    assert "debug-sgd-deadly-0 failed: It has killed its process 2 times" in said[2]
    (sweep,) = sweeps(workspace)
    table = rows(workspace, sweep)
    assert [row["status"] for row in table] == ["FAILED", "FINISHED", "FINISHED", "FINISHED"]
    assert all(workspace.logged(job) in ([], list(range(1, 21))) for job in children(workspace, sweep))
    assert len(trials(sweep)) == len(children(workspace, sweep)) == 4
