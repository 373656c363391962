"""A search is resumed wherever it was killed, extended by a larger number, pruned, and compares several objectives."""

import os
import re
import signal
from dataclasses import dataclass

import optuna
import pytest
import yaml
from optuna.trial import TrialState
from sweep_runs import artifact, children, folder, params_lines, rows, sweeps, the_sweep, trained, trials

from helpers.workspace import Workspace

SEARCH = ("-m", "sweep=search", "hydra.sweeper.n_trials=4", "trainer.max_epochs=1", "loss=slow")
# A search that ends within seconds: 1 of 3 epochs of poor trials, after two trials that are not stopped.
PRUNED = (
    "-m", "sweep=search", "sampler=random", "pruner=median", "hydra.sweeper.pruner.n_startup_trials=2",
    "hydra.sweeper.n_trials=6", "trainer.max_epochs=3",
)  # fmt: skip
JOBLIB = ("launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_jobs=2")
FRONT = (
    "-m", "sweep=search", "hydra.sweeper.n_trials=4", "trainer.max_epochs=1", "model=lenet,airbench",
    "optimizer.lr=0.05", "optimizer.momentum=interval(0.5,0.9)", "optimizer.weight_decay=0", "trainer.batch_size=32",
    "monitor=[val/accuracy,parameters]", "mode=[max,min]",
)  # fmt: skip
# A sampler that kills the process once, while it proposes the second value of the second trial.
SAMPLER = """
import os, signal
from pathlib import Path
from optuna.samplers import RandomSampler

class Dying(RandomSampler):
    def sample_independent(self, study, trial, name, distribution):
        if trial.number == 1 and trial.params and not Path("died.txt").exists():
            Path("died.txt").touch()
            os.killpg(os.getpgid(0), signal.SIGKILL)
        return super().sample_independent(study, trial, name, distribution)
"""


def proposed(output: str) -> dict[int, str]:
    """Return the overrides of each started trial by its number."""
    lines = re.findall(r"^\[(\d+)\] Trial \d+/\d+: (optimizer\.lr=.*)$", output, re.MULTILINE)
    return {int(number): overrides for number, overrides in lines}


def studies(workspace: Workspace, database: str = "optuna.db") -> list[optuna.Study]:
    """Load the studies of a workspace."""
    url = f"sqlite:///{workspace.root / database}"
    return [optuna.load_study(study_name=name, storage=url) for name in optuna.get_all_study_names(url)]


def states(workspace: Workspace) -> list[TrialState]:
    """Return the states of the trials of the only study."""
    (study,) = studies(workspace)
    return [trial.state for trial in study.trials]


@dataclass(frozen=True)
class Interrupted:
    workspace: Workspace
    interrupted: str
    resumed: str
    again: str
    extended: str


def scenario_interrupted(workspace: Workspace) -> Interrupted:
    search = workspace.start("python", "src/train.py", *SEARCH)
    search.wait_for("[2] Trial 3/4")
    search.process.kill()
    interrupted = search.end(code=-signal.SIGKILL)
    resumed, again = workspace.train(*SEARCH), workspace.train(*SEARCH)
    return Interrupted(workspace, interrupted, resumed, again, workspace.train(*SEARCH, "hydra.sweeper.n_trials=5"))


@pytest.mark.long
def test_an_interrupted_search_continues_and_a_larger_number_adds_trials(outcome):
    search = outcome(scenario_interrupted)
    first, second, third = (proposed(text) for text in (search.interrupted, search.resumed, search.extended))
    assert list(first) == [0, 1, 2] and trained(search.interrupted) == [0, 1]
    assert list(second) == [2, 3] and trained(search.resumed) == [2, 3] and second[2] == first[2]
    assert "Resuming a search: 2 of 4 trials have ended." in search.resumed
    assert proposed(search.again) == {} and "This search has its 4 trials" in search.again
    assert list(third) == [4] and trained(search.extended) == [4]
    assert len({*first.values(), *second.values(), *third.values()}) == 5
    assert not any(word in search.resumed + search.extended for word in ("Warning", "experimental", "A new study"))

    sweep = the_sweep(search.workspace)
    jobs = children(search.workspace, sweep)
    assert trials(sweep) == [job.info.run_id for job in jobs] and sweep.info.status == "FINISHED" and len(jobs) == 5
    assert all(search.workspace.logged(job) == [1] for job in jobs)
    (study,) = studies(search.workspace)
    values = [job.data.metrics["val/accuracy"] for job in jobs]
    assert [trial.value for trial in study.trials] == values and sweep.data.tags["study"] == study.study_name
    # Each proposed value is in the run's name and in the lines for params.yaml.
    lr = jobs[0].data.params["optimizer.lr"]
    assert f"optimizer.lr={lr} " in jobs[0].info.run_name
    overrides = yaml.safe_load(params_lines(search.extended)["overrides"])
    assert overrides.keys() == {"optimizer", "trainer", "runtime"}
    assert overrides["optimizer"].keys() == {"lr", "momentum", "weight_decay"}
    assert {"batch_size", "max_epochs"} <= overrides["trainer"].keys()


@pytest.mark.long
def test_the_figures_of_a_search_are_in_its_folder_on_the_parent_run_and_on_the_page(outcome):
    search = outcome(scenario_interrupted)
    sweep, path = the_sweep(search.workspace), search.workspace.root / folder(search.extended)
    page = (path / "compare.html").read_text()
    for name in ("history", "importance", "parallel"):
        image = (path / f"search_{name}.png").read_bytes()
        assert image.startswith(b"\x89PNG") and artifact(search.workspace, sweep, f"search_{name}.png") == image
    assert page.count("<img") == 5 and "Pareto" not in page


def scenario_dying(workspace: Workspace) -> tuple[Workspace, str, str]:
    (workspace.root / "src" / "own_sampler.py").write_text(SAMPLER)
    command = (
        *SEARCH,
        "sampler=random",
        "hydra.sweeper.sampler._target_=own_sampler.Dying",
        "hydra.sweeper.n_trials=3",
    )
    search = workspace.start("setsid", "python", "src/train.py", *command)
    return workspace, search.end(code=-signal.SIGKILL), workspace.train(*command)


@pytest.mark.long
def test_a_search_killed_while_it_proposes_a_trial_completes_that_proposal(outcome):
    workspace, killed, resumed = outcome(scenario_dying)
    assert trained(killed) == [0] and trained(resumed) == [1, 2]
    assert states(workspace) == [TrialState.COMPLETE] * 3
    assert len(children(workspace, the_sweep(workspace))) == 3


@dataclass(frozen=True)
class Pruned:
    workspace: Workspace
    output: str
    killed: str
    resumed: str
    alone: str


def scenario_pruned(workspace: Workspace) -> Pruned:
    """Kill a search during a trial that goes on after its first epoch, resume it, and finish a pruned training."""
    killed = workspace.start("setsid", "python", "src/train.py", *PRUNED, "loss=slow", *JOBLIB)
    killed.wait_for("] epoch 2/3")
    os.killpg(killed.process.pid, signal.SIGKILL)
    first = killed.end(code=-signal.SIGKILL)
    resumed = workspace.train(*PRUNED, "loss=slow", *JOBLIB)
    output = workspace.train(*PRUNED)
    number = int(re.findall(r"^\[(\d+)\] Pruned", output, re.MULTILINE)[0])
    values = [word for word in proposed(output)[number].split() if word.startswith(("optimizer", "trainer"))]
    return Pruned(workspace, output, first, resumed, workspace.train(*values))


@pytest.mark.long
def test_a_pruned_trial_is_a_child_run_with_its_reason_and_does_not_fail_the_search(outcome):
    pruned = outcome(scenario_pruned)
    sentences = re.findall(r"^\[\d+\] (Pruned after epoch \d of 3 with validation accuracy .*)$", pruned.output, re.M)
    assert sentences and "failed" not in pruned.output and "Traceback" not in pruned.output
    sweep = sweeps(pruned.workspace)[-1]
    assert sweep.info.status == "FINISHED"
    table = rows(pruned.workspace, sweep)
    stopped = [row for row in table if row["status"] == "PRUNED"]
    assert [row["reason"] for row in stopped] == sentences
    assert {row["status"] for row in table} == {"FINISHED", "PRUNED"} and len(table) == 6
    study = next(study for study in studies(pruned.workspace) if study.study_name == sweep.data.tags["study"])
    assert [trial.state.name for trial in study.trials] == [
        "PRUNED" if row["status"] == "PRUNED" else "COMPLETE" for row in table
    ]
    # Each epoch was reported, the last one of a finished trial too. (One pruned training was finished afterwards.)
    for trial, row in zip(study.trials, table, strict=True):
        history = pruned.workspace.mlflow.get_metric_history(row["run_id"], "val/accuracy")
        assert trial.last_step == 3 or row["status"] == "PRUNED"
        assert trial.intermediate_values == {
            metric.step: metric.value for metric in history if metric.step <= trial.last_step
        }


@pytest.mark.long
def test_a_pruned_training_goes_on_from_its_checkpoint_where_it_is_asked_for_again(outcome):
    pruned = outcome(scenario_pruned)
    assert "Resuming from checkpoint" in pruned.alone and "epoch 1/3" not in pruned.alone
    assert "epoch 3/3" in pruned.alone
    finished = [
        run for run in pruned.workspace.runs() if "pruned" not in run.data.tags and "fingerprint" in run.data.tags
    ]
    assert all(pruned.workspace.logged(run) == [1, 2, 3] for run in finished)


@pytest.mark.long
def test_a_search_with_parallel_trials_that_is_killed_trains_nothing_twice(outcome):
    pruned = outcome(scenario_pruned)
    first, second = proposed(pruned.killed), proposed(pruned.resumed)
    assert sorted(first)[:2] == [0, 1] and set(first) | set(second) == set(range(6))
    assert all(second[number] == first[number] for number in first.keys() & second.keys())
    assert not set(trained(pruned.killed)) & set(trained(pruned.resumed))
    slow = sweeps(pruned.workspace)[0]
    jobs = children(pruned.workspace, slow)
    assert len(jobs) == 6 and {job.info.status for job in jobs} <= {"FINISHED", "KILLED"}
    assert all(pruned.workspace.logged(job) == list(range(1, len(pruned.workspace.logged(job)) + 1)) for job in jobs)


def scenario_front(workspace: Workspace) -> tuple[Workspace, str]:
    return workspace, workspace.train(*FRONT, "hydra.sweeper.storage=sqlite:///elsewhere.db")


@pytest.mark.long
def test_a_search_for_several_objectives_shows_the_pareto_front(outcome):
    workspace, output = outcome(scenario_front)
    sweep, path = the_sweep(workspace), workspace.root / folder(output)
    jobs = children(workspace, sweep)
    (study,) = studies(workspace, "elsewhere.db")
    assert not (workspace.root / "optuna.db").exists()
    values = [[job.data.metrics["val/accuracy"], job.data.metrics["parameters"]] for job in jobs]
    assert [trial.values for trial in study.trials] == values and len(jobs) == 4
    # Each training has one monitor, as without the search.
    assert {(job.data.params["monitor"], job.data.params["mode"]) for job in jobs} == {("val/accuracy", "max")}
    title = "Pareto front: validation accuracy (max), parameters (min)"
    assert title in " ".join(output.split()) and title in (path / "comparison.md").read_text()
    assert title in (path / "compare.html").read_text()
    assert artifact(workspace, sweep, "pareto.png") == (path / "pareto.png").read_bytes()
    front = (path / "comparison.md").read_text().partition(title)[2]
    assert front.count("\n| ") == 2 + len(study.best_trials)


def scenario_failing(workspace: Workspace) -> tuple[Workspace, str, list[TrialState], str]:
    arguments = ("-m", "sweep=search", "hydra.sweeper.n_trials=2", "loss=raising")
    failed, before = workspace.train(*arguments, code=1), states(workspace)
    workspace.write("labels.txt", "")
    return workspace, failed, before, workspace.train(*arguments, code=1)


@pytest.mark.long
def test_failed_trials_do_not_stop_a_search_and_are_replaced_by_the_same_command(outcome):
    workspace, failed, before, again = outcome(scenario_failing)
    assert "No trial finished, so there is no best trial." in failed and "Traceback" not in failed
    assert failed.count("LookupError: no such label") >= 2
    assert before == [TrialState.FAIL] * 2
    assert trained(again) == [2, 3] and states(workspace) == [TrialState.FAIL] * 2 + [TrialState.COMPLETE] * 2


def test_the_package_of_a_missing_sweeper_is_named(project):
    project.write("conf/sweep/far.yaml", "# @package _global_\ndefaults:\n  - override /hydra/sweeper: ax\n")
    ended = project.start(train, "-m", "sweep=far")
    assert (ended.code, ended.out) == (2, "")
    assert "pip install hydra-ax-sweeper" in ended.err and ended.err.count("\n") == 1


def train(config: object) -> None:
    """Never called."""
