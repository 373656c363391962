"""Run real sweeps in copies of one workspace, two at a time, started before the first test needs their outcome."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.workspace import Workspace, add_own, prepared

MAX_PARALLEL = 2
CUSTOM_LOSSES = '''
import os, signal
from pathlib import Path
from torch.nn.functional import cross_entropy
from torch import nn

class Raising(nn.Module):
    """Fail until a file exists."""
    def forward(self, logits, labels):
        if not Path("labels.txt").exists():
            raise LookupError("no such\\n  label")
        return cross_entropy(logits, labels)

class Deadly(nn.Module):
    """Kill the process, as running out of memory would."""
    def forward(self, logits, labels):
        with Path("deaths.txt").open("a") as file:
            file.write("killed ")
        os.kill(os.getpid(), signal.SIGKILL)

class Environment(nn.Module):
    """Write the environment variables of the process to a file."""
    def forward(self, logits, labels):
        Path(f"environment-{os.getpid()}.txt").write_text(repr(dict(os.environ)))
        return cross_entropy(logits, labels)
'''

Scenario = Callable[[Workspace], Any]


@pytest.fixture(scope="session")
def never_swept(
    made_once: Callable[[str, Callable[[Path], object]], Path], tmp_path_factory: pytest.TempPathFactory
) -> Workspace:
    """Make a workspace with processed digits and an empty database."""
    workspace = Workspace(made_once("prepared", prepared)).copy(tmp_path_factory.mktemp("sweeps für alle") / "origin")
    workspace.edit("params.yaml", "experiment: tutorial", "experiment: debug")
    add_own(workspace, CUSTOM_LOSSES)
    for name in ("Raising", "Deadly", "Environment"):
        text = f"_target_: own.{name}\noutput_activation: softmax\n"
        (workspace.root / "conf" / "loss" / f"{name.lower()}.yaml").write_text(text)
    return workspace


@pytest.fixture(scope="session", autouse=True)
def started(
    request: pytest.FixtureRequest, never_swept: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Scenario], Future[Any]]]:
    """Start the scenarios (functions named scenario_...) of the selected tests, each in its own workspace."""
    futures: dict[Scenario, Future[Any]] = {}
    # They run beside other tests, which set variables of this process.
    environment = dict(os.environ)
    with ThreadPoolExecutor(MAX_PARALLEL) as pool:

        def start(scenario: Scenario) -> Future[Any]:
            if scenario not in futures:
                copy = never_swept.copy(tmp_path_factory.mktemp(scenario.__name__) / "copy")
                futures[scenario] = pool.submit(scenario, replace(copy, environment=environment))
            return futures[scenario]

        for item in request.session.items:
            if isinstance(item, pytest.Function) and "outcome" in item.fixturenames:
                for name in item.function.__code__.co_names:
                    if name.startswith("scenario_"):
                        start(getattr(item.module, name))
        yield start
        pool.shutdown(cancel_futures=True)


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Callable[[Workspace], None]:
    """Return a function that changes to a workspace and uses its database."""

    def enter(workspace: Workspace) -> None:
        monkeypatch.chdir(workspace.root)
        # MLflow sets this variable too; set by monkeypatch, it is restored at the end of the test.
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace.root / 'mlflow.db'}")

    return enter


@pytest.fixture
def outcome(started: Callable[[Scenario], Future[Any]]) -> Callable[[Scenario], Any]:
    """Return a function that waits for a scenario and returns its result."""
    return lambda scenario: started(scenario).result()
