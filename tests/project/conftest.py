"""Fixtures for the tests of your own code, which `python src/new.py` writes to this folder."""

from collections.abc import Iterator

import pytest
import torch

from helpers.config_project import Project

# Independent of your params.yaml; three epochs are enough for a network to learn a little of a few images.
PARAMS = "experiment: null\noptimizer: adam\noverrides: {trainer: {max_epochs: 3, batch_size: 9}}\n"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Train with one thread: more take longer for so few images."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def project(project: Project) -> Project:
    """A copy of conf/ with a params.yaml for trainings of a second."""
    project.write("params.yaml", PARAMS)
    return project
