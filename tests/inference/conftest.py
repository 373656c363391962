"""What several files' tests ask: one exported model."""

from pathlib import Path

import pytest
from small_model import facts, network

from cifar_pipeline.inference.export import export_model


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model. Only to look at."""
    folder = tmp_path_factory.mktemp("Modelle für alle") / "last"
    export_model(network(), facts(), folder)
    return folder
