"""Fixtures: a workspace in which the real stages have run once, and copies of it."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.workspace import Workspace, make_repository, workspace_of_tree


@dataclass(frozen=True)
class Reproduced:
    """A clone after its first `dvc repro`, and the output of that command."""

    clone: Workspace
    output: str


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Reproduced:
    """Run the pipeline in a directory whose name contains spaces and an umlaut."""
    clone = workspace_of_tree(tmp_path_factory.mktemp("geklonte Pipeline für alle"))
    make_repository(clone)
    output = clone.dvc("repro")
    clone.commit()
    return Reproduced(clone, output)


@pytest.fixture(scope="session")
def clone(reproduced: Reproduced) -> Workspace:
    """A git repository with the results of its first `dvc repro` committed. Read-only: see `copy`."""
    return reproduced.clone


@pytest.fixture
def copy(clone: Workspace, tmp_path: Path) -> Workspace:
    """A copy of `clone` that a test may change."""
    return clone.copy(tmp_path / "copy")


@pytest.fixture(scope="session")
def real_data() -> str:
    """Return the path of the real CIFAR-10, or skip."""
    source = os.environ.get("CIFAR10_SOURCE")
    if not source:
        pytest.skip("CIFAR10_SOURCE names no real CIFAR-10")
    return source
