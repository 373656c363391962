"""Two workspaces promote concurrently, interleaved at every step: the best model becomes the champion."""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from cifar_pipeline.tracking import registry
from cifar_pipeline.tracking.champion import PENDING, Candidate, PromotionPolicy, from_run
from cifar_pipeline.tracking.client import connect
from cifar_pipeline.tracking.registry import promote, read_versions, roll_back
from cifar_pipeline.tracking.runs import training_run
from helpers.data_facts import data_facts

POLICY = PromotionPolicy("digits", "champion", 0.0)
# More steps than any promotion needs.
ALL_STEPS = 40


class Turns:
    """Let threads call MLflow one at a time in the given order, and then each until its end."""

    def __init__(self, order: Sequence[int], count: int) -> None:
        self.order, self.live, self.changed = list(order), list(range(count)), threading.Condition()

    def next(self) -> int:
        while self.order and self.order[0] not in self.live:
            del self.order[0]
        return self.order[0] if self.order else self.live[0]

    def step(self, who: int, call: Callable[[], Any]) -> Any:
        with self.changed:
            assert self.changed.wait_for(lambda: self.next() == who, timeout=60)
            try:
                return call()
            finally:
                del self.order[:1]
                self.changed.notify_all()

    def end(self, who: int) -> None:
        with self.changed:
            self.live.remove(who)
            self.changed.notify_all()


@dataclass(frozen=True)
class TurnClient:
    """MLflow client of one thread, which waits for its turn before each call."""

    client: MlflowClient
    turns: Turns
    who: int

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.client, name)
        return lambda *args, **kwargs: self.turns.step(self.who, partial(method, *args, **kwargs))


@dataclass(frozen=True)
class SharedRegistry:
    """A registry with versions of 50, 60 and 70 % that several workspaces use concurrently."""

    root: Path
    candidates: tuple[Candidate, ...]
    patch: pytest.MonkeyPatch

    def reset(self, champion: str) -> None:
        with closing(sqlite3.connect(self.root / "mlflow.db")) as database, database:
            database.execute("DELETE FROM model_version_tags WHERE key LIKE 'champion.%'")
            database.execute("DELETE FROM registered_model_aliases")
        if champion:
            promote(self.candidates[int(champion) - 1], POLICY, False)

    def interleave(self, order: Sequence[int], *tasks: Callable[[], str]) -> list[str]:
        """Run the tasks, their MLflow calls in this order; return the line of each."""
        turns, lines, local = Turns(order, len(tasks)), [""] * len(tasks), threading.local()
        client, experiment = connect()

        def run(who: int, task: Callable[[], str]) -> None:
            local.client = TurnClient(client, turns, who)
            try:
                lines[who] = task()
            finally:
                turns.end(who)

        with self.patch.context() as patch:
            patch.setattr(registry, "connect", lambda: (local.client, experiment))
            patch.setattr(registry, "_registry_lock", nullcontext)  # each workspace has its own lock
            threads = [threading.Thread(target=run, args=pair) for pair in enumerate(tasks)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return lines

    def promotion(self, number: str) -> Callable[[], str]:
        return partial(promote, self.candidates[int(number) - 1], POLICY, False)

    @property
    def champion(self) -> str:
        return str(connect()[0].get_model_version_by_alias(POLICY.name, POLICY.alias).version)

    def tags(self, number: str) -> dict[str, str]:
        return dict(connect()[0].get_model_version(POLICY.name, number).tags)


@pytest.fixture(scope="module")
def candidates(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Candidate, ...]:
    result = tmp_path_factory.mktemp("result")
    (result / "last").mkdir()
    (result / "last" / "MLmodel").write_text("metadata: none\n")
    (result / "metadata.json").write_text(json.dumps({"classes": ["0"]}))
    dataset = data_facts()
    made = []
    for accuracy in (0.5, 0.6, 0.7):
        with training_run(
            f"with {accuracy}", "a-training", {"monitor": "val/accuracy", "mode": "max"}, dataset, rerun=False
        ) as run:
            run.log_metrics({"val/accuracy": accuracy}, 1)
            run.log_result(result, {})
        made.append(from_run(run.id, "last"))
        promote(made[-1], POLICY, False)
    return tuple(made)


@pytest.fixture
def shared(
    workspace: Path, candidates: tuple[Candidate, ...], monkeypatch: pytest.MonkeyPatch
) -> Iterator[SharedRegistry]:
    yield SharedRegistry(workspace, candidates, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize(
    ("first", "others"),
    [
        ("1", (4,)),
        pytest.param("", (1, 3, 5, 7), marks=pytest.mark.long),
        pytest.param("1", (2, 5, 6, 8), marks=pytest.mark.long),
    ],
)
def test_the_better_of_two_interleaved_promotions_is_the_champion(
    shared: SharedRegistry, first: str, others: Sequence[int]
) -> None:
    ends = set()
    for one in range(1, 10):
        for other in others:
            for who in (0, 1):
                shared.reset(first)
                order = [who] * one + [1 - who] * other + [who] * ALL_STEPS
                lines = shared.interleave(order, shared.promotion("2"), shared.promotion("3"))
                assert shared.champion == "3", f"after {order}: {lines}"
                assert not any(PENDING in shared.tags(number) for number in "123")
                assert lines[1].startswith("Version 3 of digits (a-training, val/accuracy 70.00%) is the champion now")
                ends.add((lines[0].partition(") ")[2].partition(":")[0], shared.tags("3")["champion.before"]))
    # Possible outcomes of the worse one, and the version that the better one replaced.
    assert ends >= {("is the champion now", "2"), ("is registered", "2"), ("was registered before", first)}


def test_the_best_of_many_concurrent_promotions_is_the_champion(shared: SharedRegistry) -> None:
    for _ in range(2):
        shared.reset("")
        shared.interleave([0, 2, 1, 1, 2, 0] * 6, *map(shared.promotion, "132"))
        assert shared.champion == "3"


@pytest.mark.parametrize(
    "steps", [pytest.param(steps, marks=[] if steps % 4 == 1 else [pytest.mark.long]) for steps in range(1, 14)]
)
def test_a_promotion_during_a_rollback_is_not_lost_and_does_not_restore_the_rolled_back_version(
    shared: SharedRegistry, steps: int
) -> None:
    for who in (0, 1):
        shared.reset("1")
        shared.promotion("2")()
        shared.interleave([who] * steps + [1 - who] * ALL_STEPS, partial(roll_back, POLICY), shared.promotion("3"))
        rolled_back = [number for number in "123" if "champion.rolled_back" in shared.tags(number)]
        # The same outcome as one after the other.
        assert (shared.champion, rolled_back) in [("3", ["2"]), ("2", ["3"])]


def test_a_promotion_that_was_killed_halfway_is_completed_by_the_same_command(shared: SharedRegistry) -> None:
    client, _ = connect()
    shared.reset("1")
    shared.promotion("3")()
    # State after a promotion of the worse one that read the old alias and was killed.
    for key, value in {PENDING: "then", "champion.before": "1", "champion.since": "then"}.items():
        client.set_model_version_tag(POLICY.name, "2", key, value)
    client.set_registered_model_alias(POLICY.name, POLICY.alias, "2")
    shared.promotion("2")()
    assert shared.champion == "3" and PENDING not in shared.tags("2")


def test_an_alias_that_the_user_set_stays(shared: SharedRegistry) -> None:
    shared.reset("1")
    shared.promotion("3")()
    connect()[0].set_registered_model_alias(POLICY.name, POLICY.alias, "1")
    assert "is the champion now" in shared.promotion("2")()
    assert shared.champion == "2"


def test_two_workspaces_that_register_the_same_model_create_one_version(shared: SharedRegistry) -> None:
    policy = PromotionPolicy("another name", "champion", 0.0)
    for steps in range(2, 8):
        numbered = PromotionPolicy(f"{policy.name} {steps}", policy.alias, policy.min_improvement)
        task = partial(promote, shared.candidates[0], numbered, False)
        lines = shared.interleave([0] * steps + [1] * ALL_STEPS, task, task)
        (version,) = read_versions(numbered.name)
        assert version.aliases == ("champion",) and all("Version 1 of" in line for line in lines)


def test_an_experiment_that_another_workspace_creates_concurrently_is_used(
    shared: SharedRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = MlflowClient.get_experiment_by_name, []

    def late(client: MlflowClient, name: str) -> Any:
        calls.append(name)
        return None if len(calls) == 1 else original(client, name)

    known = connect()[1]
    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", late)
    assert connect()[1] == known and len(calls) == 2


def test_other_errors_of_creating_an_experiment_are_raised(
    shared: SharedRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise MlflowException("out of order")

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", lambda *_: None)
    monkeypatch.setattr(MlflowClient, "create_experiment", refuse)
    with pytest.raises(MlflowException, match="out of order"):
        connect()
