"""Errors that depend on the data or the machine are reported when `train` starts, before anything is written."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch  # noqa: F401  (imported before a test hides the GPU)
import numpy as np
import pytest
import torch
from broken_files import cut_off, empty, flip_a_bit

from cifar_pipeline.config.compose import compose_config
from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.models.build import build_model
from cifar_pipeline.stages.evaluate import evaluate
from cifar_pipeline.stages.train import train
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import ROOT, Project


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("trainer.batch_size=91", ["trainer.batch_size=91", "90 training images", "digits"]),
        ("runtime.accelerator=cuda", ["runtime.accelerator=cuda", "this machine has cpu", "auto"]),
        ("normalization.mean=[0.4,0.5]", ["normalization.mean=[0.4, 0.5]", "2 numbers", "3 channels"]),
        ("normalization.std=[0.4,0.5]", ["normalization.std=[0.4, 0.5]", "2 numbers", "3 channels"]),
        ("data.val_fraction=0.2", ["data.val_fraction=0.1", "data.val_fraction=0.2", "dvc repro preprocess"]),
        ("optimizer.nesterov=true optimizer.momentum=0", ["torch.optim.SGD", "nesterov=true", "momentum=0"]),
        ("loss=focal loss.alpha=7", ["loss.alpha=7", "between 0 and 1"]),
        ("loss.class_weights=[1,2]", ["loss.class_weights has 2 numbers", "digits has 10 classes (0, 1, 2, 3"]),
        ("model=timm model.name=vit_tiny_patch16_224", ["images of 32x32 with 3 channels", "It accepts 224x224"]),
    ],
)
def test_train_refuses_with_one_line_and_writes_nothing(
    project: Project, digits: Dataset, monkeypatch: pytest.MonkeyPatch, override: str, fragments: list[str]
) -> None:
    shutil.copytree(digits.folder, project.folder / "data" / "processed")
    (project.folder / "src").symlink_to(ROOT / "src")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    ended = project.start(train, "data=digits", *override.split())
    assert ended.code == 2
    assert ended.err.count("\n") == 1, ended.err
    for fragment in fragments:
        assert fragment in ended.err
    assert sorted(path.name for path in project.folder.iterdir()) == ["conf", "data", "params.yaml", "src"]


def test_a_network_that_cannot_be_exported_is_refused_before_its_first_step(
    project: Project, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A custom network with data-dependent control flow, which ONNX cannot represent."""
    shutil.copytree(digits.folder, project.folder / "data" / "processed")
    (project.folder / "src").symlink_to(ROOT / "src")
    code = (
        "import torch\n\nclass Branching(torch.nn.Module):\n"
        "    def __init__(self, channels, size, classes):\n"
        "        super().__init__()\n        self.head = torch.nn.Linear(channels, classes)\n\n"
        "    def forward(self, images):\n        features = images.mean((2, 3))\n"
        "        return self.head(-features if features.sum() > 0 else features)\n"
    )
    project.write("own/branching.py", code)
    project.write(
        "conf/model/branching.yaml", "# A network with data-dependent control flow.\n_target_: branching.Branching\n"
    )
    monkeypatch.syspath_prepend(str(project.folder / "own"))
    monkeypatch.setattr("cifar_pipeline.training.module.Classifier.training_step", lambda *_: pytest.fail("a step"))
    monkeypatch.setattr("cifar_pipeline.tracking.runs.training_run", lambda *_: pytest.fail("a run"))
    ended = project.start(train, "data=digits", "model=branching", "runtime.accelerator=cpu")
    assert ended.code == 2 and "model: this network can't be exported as an ONNX model (" in ended.err
    assert ended.err.count("\n") == 1


def test_images_that_are_not_square_are_refused(project: Project, digits: Dataset) -> None:
    with pytest.raises(UserError, match="digits are 16 wide and 32 high"):
        build_model(compose_config(["data=digits"]), dataclasses.replace(digits, shape=(32, 16, 3)))


def test_train_without_processed_data_names_the_command_that_prepares_it(project: Project) -> None:
    ended = project.start(train)
    assert ended.code == 2
    assert ended.err == "data/processed/dataset.json is missing; `dvc repro -f preprocess` rebuilds it.\n"


def foreign(path: Path) -> None:
    """Replace a file by a valid one with other content."""
    if path.suffix == ".npy":
        np.save(path, np.zeros_like(np.load(path)))
    else:
        path.write_text('{"name": "ours"}', encoding="utf-8")


DAMAGES = [cut_off, empty, flip_a_bit, foreign]


@pytest.mark.parametrize(
    ("stage", "file", "damage"),
    [
        *[(train, file, damage) for file in ("train/images.npy", "dataset.json") for damage in DAMAGES],
        *[(evaluate, "test/labels.npy", damage) for damage in (flip_a_bit, foreign)],
    ],
)
def test_damaged_data_stops_a_stage_with_one_line(
    project: Project, digits: Dataset, stage: Callable[..., object], file: str, damage: Callable[[Path], None]
) -> None:
    processed = project.folder / "data" / "processed"
    shutil.copytree(digits.folder, processed)
    damage(processed / file)
    ended = project.start(stage, "data=digits")
    ended.assert_refused("`dvc repro -f preprocess`")
    assert ended.err.startswith("data/processed")
    assert sorted(path.name for path in project.folder.iterdir()) == ["conf", "data", "params.yaml"]
