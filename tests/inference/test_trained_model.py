"""Test that incomplete trainings are refused, and evaluation on other data than that of the training."""

import json
from types import SimpleNamespace

import pytest

from cifar_pipeline.inference.trained_model import TrainedModel
from cifar_pipeline.utils.errors import UserError


@pytest.fixture
def models(tmp_path):
    folder = tmp_path / "models"
    for name in ("last", "best"):
        (folder / name).mkdir(parents=True)
    metadata = {
        "checkpoints": ["last", "best"],
        "dataset": {"name": "digits", "hash": "1234"},
        "loss": {},
        "parameters": 1,
        "output_activation": "softmax",
    }
    (folder / "metadata.json").write_text(json.dumps(metadata | {"timing": {}}))
    (folder / "run.json").write_text(json.dumps({"id": "5678", "name": "sgd-mse-0"}))
    return folder


def test_the_requested_checkpoint_is_opened(models):
    trained = TrainedModel.open(models, "best")
    assert (trained.model, trained.checkpoint, trained.run["name"]) == (models / "best", "best", "sgd-mse-0")


@pytest.mark.parametrize("name", ["last", "best"])
def test_removed_weights_are_not_taken_for_a_choice(models, name):
    (models / name).rmdir()
    with pytest.raises(UserError, match=rf"models/{name} is missing: `dvc repro -f train` restores it"):
        TrainedModel.open(models, "best")


def test_without_a_best_checkpoint_the_last_is_evaluated_with_a_message(models, capsys):
    (models / "best").rmdir()
    metadata = json.loads((models / "metadata.json").read_text())
    (models / "metadata.json").write_text(json.dumps(metadata | {"checkpoints": ["last"]}))
    assert TrainedModel.open(models, "best").model == models / "last"
    assert "evaluating the last ones" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "", "{", "[1, 2]", '{"dataset": {}}', b"\xff\x00"])
def test_an_unfinished_training_is_refused(models, content):
    (models / "metadata.json").unlink()
    if content is not None:
        (models / "metadata.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"There is no finished training in .*: `dvc repro train` makes one"):
        TrainedModel.open(models, "last")


def test_a_model_is_not_evaluated_on_other_data(models, tmp_path):
    trained = TrainedModel.open(models, "last")
    trained.require_same_dataset(SimpleNamespace(hash="1234", name="digits", folder=tmp_path))
    with pytest.raises(UserError, match="was trained on other data \\(digits\\) than is in .* \\(cifar10\\)"):
        trained.require_same_dataset(SimpleNamespace(hash="9", name="cifar10", folder=tmp_path))
