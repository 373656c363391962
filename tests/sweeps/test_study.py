"""Proposals follow from the seed and the trials before, and many processes share a study without losing a result."""

import multiprocessing
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from cifar_pipeline.sweeps.search import Search, SearchPlan
from cifar_pipeline.sweeps.study import open_storage
from cifar_pipeline.tracking.trial import Objective
from cifar_pipeline.utils.errors import UserError

TPE = {"_target_": "optuna.samplers.TPESampler", "seed": 0, "n_startup_trials": 2, "constant_liar": True}
SPACE = {
    "lr": FloatDistribution(0.001, 1.0, log=True),
    "batch": CategoricalDistribution([4, 8]),
    "depth": IntDistribution(1, 9, step=2),
}
PROCESSES, TRIALS = 2, 8


def opened(n_trials: int, n_jobs: int = 1, storage: str | None = None, rerun: str = "", sampler=TPE) -> Search:
    words = (("+lr=", "lr"), ("mlflow.description=", ""), ("batch=", "batch"), ("depth=", "depth"))
    objectives = (Objective("val/accuracy", "max"),)
    return SearchPlan(objectives, sampler, {}, SPACE, words, n_trials, n_jobs, storage).open("fingerprint", rerun)


def run(search: Search, limit: int = 100) -> list[list[str]]:
    """Run the trials of a search, whose value is the learning rate, and return the overrides of the first `limit`."""
    done = []
    for batch in search.batches():
        for trial in batch:
            if len(done) == limit:
                return done
            done.append(search.overrides(trial))
            search.study.tell(trial.number, trial.params["lr"])
    return done


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_interrupted_search_proposes_what_an_uninterrupted_one_does(workspace, monkeypatch):
    whole = run(opened(8))
    assert len({tuple(words) for words in whole}) == 8
    assert whole[0][1] == "mlflow.description=" and whole[0][0].startswith("+lr=0.")
    other = workspace / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    # The last one is proposed, and killed before it has a result.
    parts = [run(opened(8), limit=3), run(opened(8), limit=4), run(opened(8)), run(opened(8))]
    assert [len(part) for part in parts] == [3, 4, 1, 0]
    assert [words for part in parts for words in part] == whole


def test_a_larger_number_adds_trials_and_a_rerun_starts_anew():
    first = run(opened(3))
    assert len(run(opened(5))) == 2 and opened(5).total == 5
    assert run(opened(3, rerun="0123456789")) == first


def test_failed_trials_of_an_earlier_command_are_replaced():
    search = opened(2)
    for batch in search.batches():
        for trial in batch:
            search.study.tell(trial.number, state=TrialState.FAIL)
    again = opened(2)
    assert again.total == 4 and len(run(again)) == 2 and run(opened(2)) == []


def test_trials_of_a_batch_have_consecutive_numbers():
    search = opened(6, n_jobs=3)
    numbers = [[trial.number for trial in batch] for batch in search.batches()]
    assert numbers == [[0, 1, 2], [3, 4, 5]]
    for number in (1, 4):  # The others were interrupted.
        search.study.tell(number, 1.0)
    numbers = [[trial.number for trial in batch] for batch in opened(7, n_jobs=3).batches()]
    assert numbers == [[0], [2, 3], [5, 6]]


def test_trials_that_another_workspace_runs_are_left_to_it(workspace, monkeypatch):
    url = f"sqlite:///{workspace / 'shared.db'}"
    next(opened(3, storage=url).batches())
    other = workspace / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    assert [[trial.number for trial in batch] for batch in opened(3, storage=url).batches()] == [[1], [2]]


def add_trials(storage: str) -> None:
    """Propose and finish trials, as one of several processes that start at once."""
    study = optuna.create_study(study_name="shared", storage=open_storage(storage), load_if_exists=True)
    for _ in range(TRIALS):
        trial = study.ask(SPACE)
        trial.report(trial.params["lr"], 1)
        study.tell(trial, trial.params["lr"])


def test_processes_that_create_the_storage_at_once_lose_no_trial(workspace):
    url = f"sqlite:///{workspace / 'optuna.db'}"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=add_trials, args=(url,)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    trials = optuna.load_study(study_name="shared", storage=url).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * PROCESSES * TRIALS
    assert all(trial.intermediate_values == {1: trial.value} for trial in trials)


def test_a_damaged_storage_is_reported(workspace):
    (workspace / "optuna.db").write_text("no database, but some text that is long enough for a header " * 3)
    with pytest.raises(UserError, match=r"^optuna\.db cannot be opened \(file is not a database\): restore it"):
        open_storage(None)
