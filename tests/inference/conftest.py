"""What several files' tests ask: one exported model."""

from pathlib import Path

import pytest
from small_model import export


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model. Only to look at."""
    folder = tmp_path_factory.mktemp("Modelle für alle") / "last"
    export(folder)
    return folder
