"""One workspace with processed digits and a finished training, from which each test takes a copy."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# The workspace is that of the tests of kills.
sys.path.append(str(Path(__file__).parents[1] / "kills"))

from torture import prepared
from workspace import Workspace

# What a user might bring along: a network whose checkpoint is larger than the database, and a loss that takes its time.
OWN = """
import time
from torch import nn

class Wide(nn.Sequential):
    def __init__(self, channels, size, classes):
        super().__init__(nn.Flatten(), nn.Linear(channels * size**2, 500), nn.Linear(500, classes))

class Slow(nn.CrossEntropyLoss):
    def forward(self, *given):
        time.sleep(0.02)
        return super().forward(*given)
"""


@pytest.fixture(scope="session")
def origin(
    made_once: Callable[[str, Callable[[Path], object]], Path], tmp_path_factory: pytest.TempPathFactory
) -> Workspace:
    """Only to look at: see `copy`."""
    workspace = Workspace(made_once("prepared", prepared)).copy(tmp_path_factory.mktemp("faults") / "origin")
    workspace.edit("params.yaml", "experiment: tutorial", "experiment: debug")
    (workspace.root / "src" / "own.py").write_text(OWN)
    (workspace.root / "conf" / "model" / "wide.yaml").write_text("_target_: own.Wide\n")
    (workspace.root / "conf" / "loss" / "slow.yaml").write_text("_target_: own.Slow\nprobabilities: softmax\n")
    workspace.train()
    return workspace


@pytest.fixture
def copy(origin: Workspace, tmp_path: Path) -> Workspace:
    return origin.copy(tmp_path / "copy")
