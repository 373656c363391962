"""Use a single thread: these trainings are too small for more, and their numbers are compared."""

import shutil
from pathlib import Path

import pytest
import torch

from cifar_pipeline.data.dataset import Dataset
from helpers.config_project import ROOT, Project
from helpers.one_thread import one_thread  # noqa: F401


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
