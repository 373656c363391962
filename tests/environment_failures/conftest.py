"""Fixtures: a workspace with processed digits and a file in models/, copied for each test."""

from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.workspace import Workspace, add_own, prepared

# A model whose checkpoint is larger than the database.
WIDE = """
from torch import nn


class Wide(nn.Sequential):
    def __init__(self, channels, size, classes):
        super().__init__(nn.Flatten(), nn.Linear(channels * size**2, 500), nn.Linear(500, classes))
"""


@pytest.fixture(scope="session")
def origin(
    made_once: Callable[[str, Callable[[Path], object]], Path], tmp_path_factory: pytest.TempPathFactory
) -> Workspace:
    """Create the workspace that `copy` copies; read-only."""
    workspace = Workspace(made_once("prepared", prepared)).copy(
        tmp_path_factory.mktemp("environment_failures") / "origin"
    )
    workspace.edit("params.yaml", "experiment: tutorial", "experiment: debug")
    add_own(workspace, WIDE)
    (workspace.root / "conf" / "model" / "wide.yaml").write_text("_target_: own.Wide\n")
    # A file that must stay as it is; there is no need to train a real model.
    (workspace.root / "models" / "last").mkdir(parents=True)
    (workspace.root / "models" / "last" / "model.onnx").write_bytes(b"trained before")
    return workspace


@pytest.fixture
def copy(origin: Workspace, tmp_path: Path) -> Workspace:
    return origin.copy(tmp_path / "copy")
