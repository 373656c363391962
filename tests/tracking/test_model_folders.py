"""The model that is taken from a training's folder: the requested weights, or an error where they were removed."""

import json
import shutil
from pathlib import Path

import pytest

from cifar_pipeline.tracking.model_uri import resolve_model
from cifar_pipeline.utils.errors import UserError


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name in ("last", "best"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "MLmodel").touch()
    (tmp_path / "models" / "metadata.json").write_text(json.dumps({"checkpoints": ["last", "best"]}))
    return tmp_path / "models"


def resolved(models: Path, checkpoint: str) -> str:
    with resolve_model(str(models), "", checkpoint) as folder:
        return folder.name


def test_removed_weights_are_not_replaced_by_others(models: Path) -> None:
    assert [resolved(models, name) for name in ("last", "best")] == ["last", "best"]
    assert resolved(models / "best", "last") == "best"
    (models / "best" / "MLmodel").unlink()
    with pytest.raises(UserError, match=r"models/best is missing or incomplete: `dvc repro -f train` restores it"):
        resolved(models, "best")
    shutil.rmtree(models / "last")
    with pytest.raises(UserError, match=r"models/last is missing or incomplete"):
        resolved(models, "last")


def test_a_training_without_a_validation_split_has_the_last_weights_only(models: Path) -> None:
    shutil.rmtree(models / "best")
    (models / "metadata.json").write_text(json.dumps({"checkpoints": ["last"]}))
    assert resolved(models, "best") == "last"
