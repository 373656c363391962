"""Provide an exported model to the tests of inference."""

from pathlib import Path

import pytest
from small_model import export


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a model once, to be read only; return its folder."""
    folder = tmp_path_factory.mktemp("Modelle für alle") / "last"
    export(folder)
    return folder
