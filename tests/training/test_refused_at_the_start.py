"""What only the data or the machine can tell is refused when `train` starts, before anything is written."""

import shutil

import lightning.pytorch  # noqa: F401  (before a test says that there is no GPU)
import pytest
import torch
from project import Project

from cifar_pipeline.data.dataset import Dataset
from train import train


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("trainer.batch_size=91", ["trainer.batch_size=91", "90 training images", "digits"]),
        ("machine.accelerator=cuda", ["machine.accelerator=cuda", "this machine has cpu", "auto"]),
        ("normalize.mean=[0.4,0.5]", ["normalize.mean=[0.4, 0.5]", "2 numbers", "3 channels"]),
        ("data.val_fraction=0.2", ["data.val_fraction=0.1", "data.val_fraction=0.2", "dvc repro preprocess"]),
        ("optimizer.nesterov=true optimizer.momentum=0", ["torch.optim.SGD", "nesterov=true", "momentum=0"]),
        ("loss=focal loss.alpha=7", ["loss.alpha=7", "between 0 and 1"]),
    ],
)
def test_train_refuses_in_a_sentence_and_writes_nothing(
    project: Project, digits: Dataset, monkeypatch: pytest.MonkeyPatch, override: str, fragments: list[str]
) -> None:
    shutil.copytree(digits.folder, project.folder / "data" / "processed")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    ended = project.start(train, "data=digits", *override.split())
    assert ended.code == 2
    assert ended.err.count("\n") == 1, ended.err
    for fragment in fragments:
        assert fragment in ended.err
    assert sorted(path.name for path in project.folder.iterdir()) == ["conf", "data", "params.yaml"]


def test_train_without_processed_data_says_what_makes_it(project: Project) -> None:
    ended = project.start(train)
    assert ended.code == 2
    assert ended.err == "data/processed/dataset.json is missing; `dvc repro -f preprocess` writes it again.\n"
