"""A search that was broken off replays to the same trials, takes their results and goes on."""

import re
import signal

import pytest
from sweep_runs import children, the_sweep, trained, trials

from helpers.workspace import Workspace

SEARCH = ("-m", "sweep=search", "hydra.sweeper.n_trials=4", "trainer.max_epochs=1", "loss=slow")


def proposed(said: str) -> dict[int, str]:
    """What each trial was started with."""
    found = re.findall(r"^\[(\d+)\] trial \d of \d: (optimizer\.lr=.*)$", said, re.MULTILINE)
    return {int(number): overrides for number, overrides in found}


def scenario_broken_off(workspace: Workspace) -> tuple[Workspace, str, str]:
    search = workspace.start("python", "src/train.py", *SEARCH)
    search.wait_for("[2] trial 3 of 4")
    search.process.kill()
    return workspace, search.end(code=-signal.SIGKILL), workspace.train(*SEARCH)


@pytest.mark.long
def test_a_search_replays_and_goes_on(outcome):
    workspace, broken_off, said = outcome(scenario_broken_off)
    assert list(proposed(broken_off)) == [0, 1, 2] and trained(broken_off) == [0, 1]
    assert list(proposed(said)) == [0, 1, 2, 3] and trained(said) == [2, 3]
    assert proposed(said).items() > proposed(broken_off).items()
    assert len(set(proposed(said).values())) == 4
    assert said.count("finished before") == 2
    sweep = the_sweep(workspace)
    jobs = children(workspace, sweep)
    assert trials(sweep) == [job.info.run_id for job in jobs] and sweep.info.status == "FINISHED"
    assert all(workspace.logged(job) == [1] for job in jobs)
    # Each number of the search is in the name, and in the command that takes the winner.
    lr = jobs[0].data.params["optimizer.lr"]
    assert f"optimizer.lr={lr} " in jobs[0].info.run_name
    (command,) = re.findall(r"^  (python src/choose.py .*) && dvc repro$", said, re.MULTILINE)
    assert {"optimizer.lr", "optimizer.momentum", "optimizer.weight_decay", "trainer.batch_size"} < {
        word.partition("=")[0] for word in command.split()
    }


def scenario_failing(workspace: Workspace) -> tuple[Workspace, str]:
    words = ("-m", "sweep=search", "hydra.sweeper.n_trials=2", "loss=raising")
    return workspace, workspace.train(*words, code=1)


@pytest.mark.long
def test_a_search_without_any_result_ends_with_a_sentence(outcome):
    workspace, said = outcome(scenario_failing)
    assert "No trial has finished: there is none to choose." in said and "Traceback" not in said
    assert said.count("LookupError: no such label") >= 2
    assert the_sweep(workspace).info.status == "FAILED"


def test_a_sweeper_that_is_not_installed_is_named_with_its_package(project):
    project.write("conf/sweep/far.yaml", "# @package _global_\ndefaults:\n  - override /hydra/sweeper: ax\n")
    ended = project.start(train, "-m", "sweep=far")
    assert (ended.code, ended.out) == (2, "")
    assert "pip install hydra-ax-sweeper" in ended.err and ended.err.count("\n") == 1


def train(config: object) -> None:
    """Never begun."""
