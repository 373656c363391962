"""A killed submitit job fails only its own trial, and the same command finishes the sweep."""

import time
from dataclasses import dataclass

import psutil
import pytest
from mlflow.entities import Run
from sweep_runs import children, rows, the_sweep

from helpers.workspace import Command, Workspace

SWEEP = ("-m", "loss=cross_entropy,slow", "trainer.max_epochs=20", "launcher=submitit_local")
SECONDS = 250


@dataclass(frozen=True)
class KilledJob:
    workspace: Workspace
    output: str
    runs_left: list[Run]
    epochs: list[int]
    again: str


def jobs_of(sweep: Command) -> list[psutil.Process]:
    """Find the processes in which submitit trains trials, without their supervisors."""
    jobs = []
    for process in psutil.Process(sweep.process.pid).children(recursive=True):
        try:
            if "submitit.core._submit" in process.cmdline():
                jobs.append(process)
        except psutil.NoSuchProcess:
            continue
    return jobs


def wait_for_the_last_job(workspace: Workspace, sweep: Command) -> psutil.Process:
    """Wait until one trial has finished and the other is in the middle of its training; return the latter's process."""
    start = time.monotonic()
    while time.monotonic() - start < SECONDS:
        runs = [run for run in workspace.runs() if "sweep" not in run.data.tags]
        is_training = any(run.info.status == "RUNNING" and workspace.logged(run) for run in runs)
        jobs = jobs_of(sweep)
        if is_training and len(jobs) == 1 and any(run.info.status == "FINISHED" for run in runs):
            return jobs[0]
        assert sweep.process.poll() is None, sweep.end()
        time.sleep(0.1)
    raise AssertionError("no single job was left in the middle of its training")


def scenario_killed_job(workspace: Workspace) -> KilledJob:
    sweep = workspace.start("python", "src/train.py", *SWEEP)
    wait_for_the_last_job(workspace, sweep).kill()
    output = sweep.end(code=1)
    runs_left = children(workspace, the_sweep(workspace))
    (killed,) = [run for run in runs_left if run.info.status != "FINISHED"]
    return KilledJob(workspace, output, runs_left, workspace.logged(killed), workspace.train(*SWEEP))


def scenario_killed_first(workspace: Workspace) -> tuple[str, list[Run]]:
    # The second one trains for longer than submitit takes to notice the end of a job.
    overrides = ("loss=slow", "seed=0,1", "trainer.max_epochs=100", "launcher=submitit_local")
    sweep = workspace.start("python", "src/train.py", "-m", *overrides)
    start = time.monotonic()
    while sum(len(workspace.logged(run)) > 0 for run in workspace.runs() if "sweep" not in run.data.tags) < 2:
        assert sweep.process.poll() is None and time.monotonic() - start < SECONDS, sweep.end()
        time.sleep(0.1)
    first, _ = sorted(psutil.Process(sweep.process.pid).children(), key=psutil.Process.create_time)
    first.children()[0].kill()
    return sweep.end(code=1), children(workspace, the_sweep(workspace))


@pytest.mark.long
def test_the_sweep_waits_for_the_other_jobs_if_the_first_is_killed(outcome):
    output, runs = outcome(scenario_killed_first)
    assert "A job's process was killed; waiting for the others" in output and "Traceback" not in output
    assert {run.data.params["seed"]: run.info.status for run in runs} == {"0": "KILLED", "1": "FINISHED"}
    assert "1 finished, 1 killed" in output or "1 killed, 1 finished" in output


@pytest.mark.long
def test_a_killed_job_fails_its_trial_only_and_the_same_command_finishes_the_sweep(outcome):
    killed = outcome(scenario_killed_job)
    assert "Traceback" not in killed.output + killed.again
    assert sum(run.info.status == "FINISHED" for run in killed.runs_left) == 1
    assert 0 < len(killed.epochs) < 20
    # submitit writes the output of a job to a file.
    job_output = "".join(path.read_text() for path in killed.workspace.root.rglob("*_log.out"))
    assert "finished before" in job_output and "Resuming from checkpoint" in job_output

    sweep = the_sweep(killed.workspace)
    jobs = children(killed.workspace, sweep)
    assert [job.info.run_id for job in jobs] == [run.info.run_id for run in killed.runs_left]
    assert {job.info.status for job in [sweep, *jobs]} == {"FINISHED"}
    assert all(killed.workspace.logged(job) == list(range(1, 21)) for job in jobs)
    assert [row["status"] for row in rows(killed.workspace, sweep)] == ["FINISHED", "FINISHED"]
