"""One workspace with processed digits, from which each test takes a copy, and the undisturbed trainings."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torture import Training, train

from helpers.workspace import Workspace, prepared


@pytest.fixture(scope="session")
def origin(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Workspace:
    """Only to look at: see `copy`."""
    return Workspace(made_once("prepared", prepared))


@pytest.fixture
def copy(origin: Workspace, tmp_path: Path) -> Workspace:
    return origin.copy(tmp_path / "copy")


@pytest.fixture(scope="session")
def undisturbed(origin: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Training]:
    """The training of an engine that nobody killed, trained once."""
    trained: dict[str, Training] = {}

    def training(engine: str) -> Training:
        if engine not in trained:
            trained[engine] = train(origin.copy(tmp_path_factory.mktemp("undisturbed") / engine), engine)
            assert trained[engine].starts[0].code == 0, trained[engine].starts[0].said
        return trained[engine]

    return training
