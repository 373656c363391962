"""A killed sweep is resumed by typing the same command again."""

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
    output: str
    runs_left: list[Run]
    copy: Workspace
    again: str


def scenario_killed(workspace: Workspace) -> Killed:
    sweep = workspace.start("python", "src/train.py", *SWEEP)
    sweep.wait_for("[1] epoch 2/3")
    sweep.process.kill()
    output = sweep.end(code=-signal.SIGKILL)
    runs_left = workspace.runs()
    copy = workspace.copy(workspace.root.with_name("killed"))
    return Killed(workspace, output, runs_left, copy, workspace.train(*SWEEP))


def test_a_killed_sweep_is_resumed_where_it_stopped(outcome):
    killed = outcome(scenario_killed)
    parent, first, second = killed.runs_left
    assert [run.info.status for run in (parent, first, second)] == ["RUNNING", "FINISHED", "RUNNING"]
    assert trained(killed.output) == [0, 1] and trained(killed.again) == [2]
    assert "[0] finished before" in killed.again and "[1] Resuming from checkpoint" in killed.again

    sweep = the_sweep(killed.workspace)
    jobs = children(killed.workspace, sweep)
    assert sweep.info.run_id == parent.info.run_id
    assert [job.info.run_id for job in jobs[:2]] == [first.info.run_id, second.info.run_id]
    assert {run.info.status for run in killed.workspace.runs()} == {"FINISHED"}
    assert all(killed.workspace.logged(job) == [1, 2, 3] for job in jobs) and len(jobs) == 3


def test_an_unfinished_sweep_can_be_compared(outcome, inside, capsys):
    inside(outcome(scenario_killed).copy)
    sweep = find_sweep("")
    assert sweep
    print_summary(load_comparison(sweep.info.run_id), sweep.info.run_id)  # what src/report.py sweep does
    compared = capsys.readouterr().out
    assert "optimizer=sgd,adam,adamw on digits" in compared
    assert "finished" in compared and "running" in compared and "adamw" not in compared.partition("rank")[2]
    assert "To run debug-sgd-slow-0 in the pipeline" in compared


def scenario_stopped(workspace: Workspace) -> Workspace:
    sweep = workspace.start("python", "src/train.py", *SWEEP)
    sweep.wait_for("[1] epoch 1/3")
    sweep.process.send_signal(signal.SIGINT)
    output = sweep.end(code=128 + signal.SIGINT)
    assert output.splitlines()[-1].startswith("Stopped in epoch ") and "Traceback" not in output
    return workspace


@pytest.mark.long
def test_a_sweep_stopped_by_ctrl_c_leaves_no_running_run(outcome):
    workspace = outcome(scenario_stopped)
    assert [run.info.status for run in workspace.runs()] == ["KILLED", "FINISHED", "KILLED"]
    assert "crashes" not in workspace.runs()[2].data.tags


def scenario_deadly(workspace: Workspace) -> tuple[Workspace, str]:
    arguments = ("-m", "loss=cross_entropy,deadly,mse")
    for _ in range(2):
        workspace.train(*arguments, code=-signal.SIGKILL)
    return workspace, workspace.train(*arguments, code=1)


@pytest.mark.long
def test_a_trial_that_crashed_its_process_twice_is_skipped(outcome):
    workspace, output = outcome(scenario_deadly)
    assert workspace.read("deaths.txt") == "killed killed "
    assert "debug-sgd-deadly-0 failed: This trial crashed its process 2 times and is skipped" in output
    table = rows(workspace, the_sweep(workspace))
    assert [row["status"] for row in table] == ["FINISHED", "FAILED", "FINISHED"]
    assert "RUNNING" not in {run.info.status for run in workspace.runs()}


def scenario_joblib(workspace: Workspace) -> tuple[Workspace, list[str]]:
    arguments = ("-m", "loss=deadly,slow,cross_entropy,mse", "trainer.max_epochs=20", *JOBLIB)
    return workspace, [workspace.train(*arguments, code=1) for _ in range(3)]


@pytest.mark.long
def test_a_killed_worker_stops_the_sweep_and_only_the_crashing_trial_is_skipped(outcome):
    workspace, outputs = outcome(scenario_joblib)
    message = "A job's process was killed: type the same command again to finish the sweep."
    assert [text.splitlines()[-1] == message for text in outputs] == [True, True, False]
    assert "Traceback" not in "".join(outputs)
    assert "debug-sgd-deadly-0 was killed: its process was killed." in outputs[0]
    assert "debug-sgd-deadly-0 failed: This trial crashed its process 2 times" in outputs[2]
    (sweep,) = sweeps(workspace)
    table = rows(workspace, sweep)
    assert [row["status"] for row in table] == ["FAILED", "FINISHED", "FINISHED", "FINISHED"]
    assert all(workspace.logged(job) in ([], list(range(1, 21))) for job in children(workspace, sweep))
    assert len(trials(sweep)) == len(children(workspace, sweep)) == 4
