"""A job of submitit's that is killed costs a sweep its own trial only, and the same command typed again finishes it."""

import time
from dataclasses import dataclass

import psutil
import pytest
from mlflow.entities import Run
from sweep_runs import children, rows, the_sweep

from helpers.workspace import Command, Workspace

SWEEP = ("-m", "loss=cross_entropy,slow", "trainer.max_epochs=20", "launcher=submitit_local")
SECONDS = 120


@dataclass(frozen=True)
class KilledJob:
    workspace: Workspace
    said: str
    left: list[Run]
    epochs: list[int]
    again: str


def jobs_of(sweep: Command) -> list[psutil.Process]:
    """The processes in which submitit trains trials, without those that watch over them."""
    found = []
    for process in psutil.Process(sweep.process.pid).children(recursive=True):
        try:
            if "submitit.core._submit" in process.cmdline():
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def the_job_left(workspace: Workspace, sweep: Command) -> psutil.Process:
    """The one job that still trains, in the middle, once the other has finished."""
    began = time.monotonic()
    while time.monotonic() - began < SECONDS:
        runs = [run for run in workspace.runs() if "sweep" not in run.data.tags]
        in_the_middle = any(run.info.status == "RUNNING" and workspace.logged(run) for run in runs)
        jobs = jobs_of(sweep)
        if in_the_middle and len(jobs) == 1 and any(run.info.status == "FINISHED" for run in runs):
            return jobs[0]
        assert sweep.process.poll() is None, sweep.end()
        time.sleep(0.1)
    raise AssertionError("no job was left alone in the middle of its training")


def scenario_killed_job(workspace: Workspace) -> KilledJob:
    sweep = workspace.start("python", "src/train.py", *SWEEP)
    the_job_left(workspace, sweep).kill()
    said = sweep.end(code=1)
    left = children(workspace, the_sweep(workspace))
    (killed,) = [run for run in left if run.info.status != "FINISHED"]
    return KilledJob(workspace, said, left, workspace.logged(killed), workspace.train(*SWEEP))


@pytest.mark.long
def test_a_killed_job_costs_its_trial_only_and_the_same_command_finishes(outcome):
    killed = outcome(scenario_killed_job)
    assert "Traceback" not in killed.said + killed.again
    assert sum(run.info.status == "FINISHED" for run in killed.left) == 1
    assert 0 < len(killed.epochs) < 20
    # What a job says goes to a file of submitit's.
    jobs_said = "".join(path.read_text() for path in killed.workspace.root.rglob("*_log.out"))
    assert "finished before" in jobs_said and "Going on from the checkpoint" in jobs_said

    sweep = the_sweep(killed.workspace)
    jobs = children(killed.workspace, sweep)
    assert [job.info.run_id for job in jobs] == [run.info.run_id for run in killed.left]
    assert {job.info.status for job in [sweep, *jobs]} == {"FINISHED"}
    assert all(killed.workspace.logged(job) == list(range(1, 21)) for job in jobs)
    assert [row["status"] for row in rows(killed.workspace, sweep)] == ["FINISHED", "FINISHED"]
