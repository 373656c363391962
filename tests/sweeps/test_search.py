"""An interrupted search proposes the same trials again, reuses their results and continues."""

import re
import signal

import pytest
import yaml
from sweep_runs import children, params_lines, the_sweep, trained, trials

from helpers.workspace import Workspace

SEARCH = ("-m", "sweep=search", "hydra.sweeper.n_trials=4", "trainer.max_epochs=1", "loss=slow")


def proposed(output: str) -> dict[int, str]:
    """Return the overrides of each trial by its number."""
    lines = re.findall(r"^\[(\d+)\] Trial \d/\d: (optimizer\.lr=.*)$", output, re.MULTILINE)
    return {int(number): overrides for number, overrides in lines}


def scenario_interrupted(workspace: Workspace) -> tuple[Workspace, str, str]:
    search = workspace.start("python", "src/train.py", *SEARCH)
    search.wait_for("[2] Trial 3/4")
    search.process.kill()
    return workspace, search.end(code=-signal.SIGKILL), workspace.train(*SEARCH)


@pytest.mark.long
def test_an_interrupted_search_continues(outcome):
    workspace, interrupted, output = outcome(scenario_interrupted)
    assert list(proposed(interrupted)) == [0, 1, 2] and trained(interrupted) == [0, 1]
    assert list(proposed(output)) == [0, 1, 2, 3] and trained(output) == [2, 3]
    assert proposed(output).items() > proposed(interrupted).items()
    assert len(set(proposed(output).values())) == 4
    assert output.count("finished before") == 2
    sweep = the_sweep(workspace)
    jobs = children(workspace, sweep)
    assert trials(sweep) == [job.info.run_id for job in jobs] and sweep.info.status == "FINISHED"
    assert all(workspace.logged(job) == [1] for job in jobs)
    # Each proposed value is in the run's name and in the lines for params.yaml.
    lr = jobs[0].data.params["optimizer.lr"]
    assert f"optimizer.lr={lr} " in jobs[0].info.run_name
    overrides = yaml.safe_load(params_lines(output)["overrides"])
    assert overrides["optimizer"].keys() == {"lr", "momentum", "weight_decay"}
    assert {"batch_size", "max_epochs"} <= overrides["trainer"].keys()


def scenario_failing(workspace: Workspace) -> tuple[Workspace, str]:
    arguments = ("-m", "sweep=search", "hydra.sweeper.n_trials=2", "loss=raising")
    return workspace, workspace.train(*arguments, code=1)


@pytest.mark.long
def test_a_search_without_results_ends_with_a_message(outcome):
    workspace, output = outcome(scenario_failing)
    assert "No trial finished, so there is no best trial." in output and "Traceback" not in output
    assert output.count("LookupError: no such label") >= 2
    assert the_sweep(workspace).info.status == "FAILED"


def test_the_package_of_a_missing_sweeper_is_named(project):
    project.write("conf/sweep/far.yaml", "# @package _global_\ndefaults:\n  - override /hydra/sweeper: ax\n")
    ended = project.start(train, "-m", "sweep=far")
    assert (ended.code, ended.out) == (2, "")
    assert "pip install hydra-ax-sweeper" in ended.err and ended.err.count("\n") == 1


def train(config: object) -> None:
    """Never called."""
