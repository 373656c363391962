"""Fixture: an empty main workspace with an MLflow database."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from cifar_pipeline.config import compose
from helpers.source_tree import EXPERIMENT


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Path]:
    """Change to an empty workspace for all tests of a file."""
    root = tmp_path_factory.mktemp("Verfolgung für alle")
    shutil.copy(empty_database, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for variable in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_"))]:
            patch.delenv(variable)
        patch.setattr(compose, "_experiment_name", EXPERIMENT)  # There is no conf/.
        before = mlflow.get_tracking_uri()
        yield root
        mlflow.set_tracking_uri(before)
