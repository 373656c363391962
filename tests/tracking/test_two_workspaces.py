"""Two workspaces promote through one database, one between any two steps of the other: the best one is the champion."""

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

RULE = PromotionPolicy("digits", "champion", 0.0)
# More steps than any promotion takes.
ALL = 40


class Turns:
    """Lets threads call MLflow one at a time, in an order; then those that are left, one after the other."""

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
class Stepping:
    """MLflow's client for one thread."""

    client: MlflowClient
    turns: Turns
    who: int

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.client, name)
        return lambda *given, **named: self.turns.step(self.who, partial(method, *given, **named))


@dataclass(frozen=True)
class Office:
    """A registry with versions of 50, 60 and 70 % that several workspaces use at once."""

    root: Path
    candidates: tuple[Candidate, ...]
    patch: pytest.MonkeyPatch

    def begin_anew(self, champion: str) -> None:
        with closing(sqlite3.connect(self.root / "mlflow.db")) as database, database:
            database.execute("DELETE FROM model_version_tags WHERE key LIKE 'champion.%'")
            database.execute("DELETE FROM registered_model_aliases")
        if champion:
            promote(self.candidates[int(champion) - 1], RULE, False)

    def at_once(self, order: Sequence[int], *works: Callable[[], str]) -> list[str]:
        """What each of the works says, their calls of MLflow in this order."""
        turns, said, local = Turns(order, len(works)), [""] * len(works), threading.local()
        client, experiment = connect()

        def run(who: int, work: Callable[[], str]) -> None:
            local.client = Stepping(client, turns, who)
            try:
                said[who] = work()
            finally:
                turns.end(who)

        with self.patch.context() as patch:
            patch.setattr(registry, "connect", lambda: (local.client, experiment))
            patch.setattr(registry, "_only_one", nullcontext)  # a lock of each workspace's own holds up nobody
            threads = [threading.Thread(target=run, args=pair) for pair in enumerate(works)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return said

    def promotion(self, number: str) -> Callable[[], str]:
        return partial(promote, self.candidates[int(number) - 1], RULE, False)

    @property
    def champion(self) -> str:
        return str(connect()[0].get_model_version_by_alias(RULE.name, RULE.alias).version)

    def tags(self, number: str) -> dict[str, str]:
        return dict(connect()[0].get_model_version(RULE.name, number).tags)


@pytest.fixture(scope="module")
def candidates(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Candidate, ...]:
    result = tmp_path_factory.mktemp("result")
    (result / "last").mkdir()
    (result / "last" / "MLmodel").write_text("metadata: none\n")
    (result / "metadata.json").write_text(json.dumps({"classes": ["0"]}))
    dataset = {"name": "digits", "hash": 64 * "a", "source": "drawn"}
    made = []
    for accuracy in (0.5, 0.6, 0.7):
        with training_run(f"with {accuracy}", "a-training", {}, dataset, rerun=False) as run:
            run.log_metrics({"val/accuracy": accuracy}, 1)
            run.log_result(result, {})
        made.append(from_run(run.id, "last"))
        promote(made[-1], RULE, False)
    return tuple(made)


@pytest.fixture
def office(workspace: Path, candidates: tuple[Candidate, ...], monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    yield Office(workspace, candidates, monkeypatch)


@pytest.mark.parametrize(
    ("first", "others"),
    [
        ("1", (4,)),
        pytest.param("", (1, 3, 5, 7), marks=pytest.mark.long),
        pytest.param("1", (2, 5, 6, 8), marks=pytest.mark.long),
    ],
)
def test_whoever_comes_in_between_the_better_one_is_the_champion(
    office: Office, first: str, others: Sequence[int]
) -> None:
    ends = set()
    for one in range(1, 10):
        for other in others:
            for who in (0, 1):
                office.begin_anew(first)
                order = [who] * one + [1 - who] * other + [who] * ALL
                said = office.at_once(order, office.promotion("2"), office.promotion("3"))
                assert office.champion == "3", f"after {order}: {said}"
                assert not any(PENDING in office.tags(number) for number in "123")
                assert said[1].startswith("Version 3 of digits (a-training, 70.00% on validation) is the champion now")
                ends.add((said[0].partition(") ")[2].partition(":")[0], office.tags("3")["champion.before"]))
    # Ways in which it can end, with what the better one replaced.
    assert ends >= {("is the champion now", "2"), ("is registered", "2"), ("stays as it is", first)}


def test_of_many_workspaces_at_once_the_best_is_the_champion(office: Office) -> None:
    for _ in range(2):
        office.begin_anew("")
        office.at_once([0, 2, 1, 1, 2, 0] * 6, *map(office.promotion, "132"))
        assert office.champion == "3"


@pytest.mark.parametrize("steps", range(1, 14))
def test_a_promotion_during_a_rollback_is_neither_lost_nor_brings_back_what_was_sent_back(
    office: Office, steps: int
) -> None:
    for who in (0, 1):
        office.begin_anew("1")
        office.promotion("2")()
        office.at_once([who] * steps + [1 - who] * ALL, partial(roll_back, RULE), office.promotion("3"))
        sent_back = [number for number in "123" if "champion.rolled_back" in office.tags(number)]
        # As if one had come after the other.
        assert (office.champion, sent_back) in [("3", ["2"]), ("2", ["3"])]


def test_killed_before_it_looked_the_same_command_puts_it_right(office: Office) -> None:
    client, _ = connect()
    office.begin_anew("1")
    office.promotion("3")()
    # What a killed promotion of the worse one leaves, which had read the alias before.
    for key, value in {PENDING: "then", "champion.before": "1", "champion.since": "then"}.items():
        client.set_model_version_tag(RULE.name, "2", key, value)
    client.set_registered_model_alias(RULE.name, RULE.alias, "2")
    office.promotion("2")()
    assert office.champion == "3" and PENDING not in office.tags("2")


def test_an_alias_that_a_person_set_stays(office: Office) -> None:
    office.begin_anew("1")
    office.promotion("3")()
    connect()[0].set_registered_model_alias(RULE.name, RULE.alias, "1")
    assert "is the champion now" in office.promotion("2")()
    assert office.champion == "2"


def test_two_that_register_the_same_model_make_one_version(office: Office) -> None:
    rule = PromotionPolicy("another name", "champion", 0.0)
    for steps in range(2, 8):
        name = PromotionPolicy(f"{rule.name} {steps}", rule.alias, rule.min_improvement)
        work = partial(promote, office.candidates[0], name, False)
        said = office.at_once([0] * steps + [1] * ALL, work, work)
        (version,) = read_versions(name.name)
        assert version.aliases == ("champion",) and all("Version 1 of" in line for line in said)


def test_an_experiment_that_another_workspace_makes_at_the_same_time_is_taken(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, calls = MlflowClient.get_experiment_by_name, []

    def late(client: MlflowClient, name: str) -> Any:
        calls.append(name)
        return None if len(calls) == 1 else usual(client, name)

    known = connect()[1]
    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", late)
    assert connect()[1] == known and len(calls) == 2


def test_what_else_keeps_an_experiment_from_being_made_is_no_other_workspace(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise MlflowException("out of order")

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", lambda *_: None)
    monkeypatch.setattr(MlflowClient, "create_experiment", refuse)
    with pytest.raises(MlflowException, match="out of order"):
        connect()
