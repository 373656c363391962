"""Fixtures: a prepared workspace, a copy of it for each test, and trainings without interruption to compare with."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torture import Training, train

from helpers.workspace import Workspace, prepared


@pytest.fixture(scope="session")
def origin(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Workspace:
    """A workspace with processed digits; use `copy` to change it."""
    return Workspace(made_once("prepared", prepared))


@pytest.fixture
def copy(origin: Workspace, tmp_path: Path) -> Workspace:
    return origin.copy(tmp_path / "copy")


@pytest.fixture(scope="session")
def undisturbed(origin: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Training]:
    """Return the uninterrupted training of an engine, trained once per session."""
    trained: dict[str, Training] = {}

    def training(engine: str) -> Training:
        if engine not in trained:
            trained[engine] = train(origin.copy(tmp_path_factory.mktemp("undisturbed") / engine), engine)
            assert trained[engine].starts[0].code == 0, trained[engine].starts[0].output
        return trained[engine]

    return training
