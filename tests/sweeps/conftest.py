"""Real sweeps in copies of one workspace, two at a time, begun before the first test asks what came of them."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from helpers.workspace import Workspace, add_own, prepared

AT_ONCE = 2
LOSSES = '''
import os, signal
from pathlib import Path
from torch.nn.functional import cross_entropy
from torch import nn

class Raising(nn.Module):
    def forward(self, logits, labels):
        raise LookupError("no such\\n  label")

class Deadly(nn.Module):
    """Kills its process, as running out of memory would."""
    def forward(self, logits, labels):
        with Path("deaths.txt").open("a") as file:
            file.write("once more ")
        os.kill(os.getpid(), signal.SIGKILL)

class Telling(nn.Module):
    """Leaves its process's environment for whoever wants to look."""
    def forward(self, logits, labels):
        Path(f"environment-{os.getpid()}.txt").write_text(repr(dict(os.environ)))
        return cross_entropy(logits, labels)
'''

Scenario = Callable[[Workspace], Any]


@pytest.fixture(scope="session")
def never_swept(
    made_once: Callable[[str, Callable[[Path], object]], Path], tmp_path_factory: pytest.TempPathFactory
) -> Workspace:
    """A workspace with processed digits and an empty database."""
    workspace = Workspace(made_once("prepared", prepared)).copy(tmp_path_factory.mktemp("sweeps für alle") / "origin")
    workspace.edit("params.yaml", "experiment: tutorial", "experiment: debug")
    add_own(workspace, LOSSES)
    for name in ("Raising", "Deadly", "Telling"):
        text = f"_target_: own.{name}\nprobabilities: softmax\n"
        (workspace.root / "conf" / "loss" / f"{name.lower()}.yaml").write_text(text)
    return workspace


@pytest.fixture(scope="session", autouse=True)
def begun(
    request: pytest.FixtureRequest, never_swept: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Scenario], Future[Any]]]:
    """Begin what the chosen tests ask about, the functions named scenario_..., each in a copy of its own."""
    futures: dict[Scenario, Future[Any]] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:

        def begin(scenario: Scenario) -> Future[Any]:
            if scenario not in futures:
                copy = never_swept.copy(tmp_path_factory.mktemp(scenario.__name__) / "copy")
                futures[scenario] = pool.submit(scenario, copy)
            return futures[scenario]

        for item in request.session.items:
            if isinstance(item, pytest.Function) and "outcome" in item.fixturenames:
                for name in item.function.__code__.co_names:
                    if name.startswith("scenario_"):
                        begin(getattr(item.module, name))
        yield begin
        pool.shutdown(cancel_futures=True)


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Callable[[Workspace], None]:
    """Let this process look at a workspace as a command does that is started there."""

    def enter(workspace: Workspace) -> None:
        monkeypatch.chdir(workspace.root)
        # MLflow writes this variable, too: set here, it is taken back at the test's end.
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace.root / 'mlflow.db'}")

    return enter


@pytest.fixture
def outcome(begun: Callable[[Scenario], Future[Any]]) -> Callable[[Scenario], Any]:
    """What a scenario returns, once it has ended."""
    return lambda scenario: begun(scenario).result()
