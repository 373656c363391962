"""Fixtures for the tests of your own code, which `python src/new.py` writes to this folder."""

import pytest

from helpers.config_project import Project
from helpers.one_thread import one_thread  # noqa: F401

# Independent of your params.yaml; three epochs are enough for a network to learn a little of a few images.
PARAMS = "experiment: null\noptimizer: adam\noverrides: {trainer: {max_epochs: 3, batch_size: 9}}\n"


@pytest.fixture
def project(project: Project) -> Project:
    """A copy of conf/ with a params.yaml for trainings of a second."""
    project.write("params.yaml", PARAMS)
    return project
