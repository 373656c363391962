"""Two workspaces in which the real stages have run once, and copies of the first to change things in."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from workspace import Workspace, make_repository, workspace_of_tree


@dataclass(frozen=True)
class Reproduced:
    """The first run of everything: in a git repository, and in an unpacked archive without one."""

    clone: Workspace
    clone_said: str
    archive: Workspace
    archive_said: str


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Reproduced:
    """Both in folders whose names hold a space and an umlaut."""
    clone = workspace_of_tree(tmp_path_factory.mktemp("geklonte Pipeline für alle"))
    make_repository(clone)
    archive = workspace_of_tree(tmp_path_factory.mktemp("unpacked archive"))
    archive.dvc("config", "--local", "core.no_scm", "true")  # as the Makefile does where there is no .git
    both = clone.start("dvc", "repro"), archive.start("dvc", "repro")
    clone_said, archive_said = (command.end() for command in both)
    clone.commit()
    return Reproduced(clone, clone_said, archive, archive_said)


@pytest.fixture(scope="session")
def clone(reproduced: Reproduced) -> Workspace:
    """A git repository with the results of its first `dvc repro` committed. Only to look at: see `copy`."""
    return reproduced.clone


@pytest.fixture
def copy(clone: Workspace, tmp_path: Path) -> Workspace:
    """A copy of `clone` that a test may change."""
    return clone.copy(tmp_path / "copy")


@pytest.fixture(scope="session")
def real_data() -> str:
    """Where the real CIFAR-10 lies."""
    source = os.environ.get("CIFAR10_SOURCE")
    if not source:
        pytest.skip("CIFAR10_SOURCE names no real CIFAR-10")
    return source
