"""Use a single thread: these trainings are too small for more, and their numbers are compared."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cifar_pipeline.data.dataset import Dataset
from helpers.config_project import ROOT, Project


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def ready(project: Project, digits: Dataset, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with what `train` needs: the small digits and an empty database."""
    shutil.copytree(digits.folder, project.folder / "data" / "processed")
    (project.folder / "src").symlink_to(ROOT / "src")
    shutil.copy(empty_database, project.folder)
    # MLflow sets this variable too; monkeypatch restores it after the test.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project.folder / 'mlflow.db'}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return project
