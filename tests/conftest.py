"""What several rooms' tests share: a project to break, and a small processed data set."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from project import ROOT, Project

from cifar_pipeline.config.compose import composed
from cifar_pipeline.data.asked import asked_values
from cifar_pipeline.data.dataset import Dataset, write
from cifar_pipeline.data.sources.digits import Digits

TRAIN, VAL, TEST = 90, 30, 20
# Folders whose tests share a workspace in which the real stages have run.
SHARING = ("pipeline", "sweeps")


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that share something slow to make in one process: a whole folder, or else a file."""
    for item in items:
        group = next((name for name in SHARING if name in item.path.parts), item.path.stem)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A small part of the digits, processed as the configuration `data=digits` asks for: 90, 30 and 20 images."""
    return small_digits(tmp_path_factory, VAL)


@pytest.fixture(scope="session")
def digits_without_val(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The same with nothing held back."""
    return small_digits(tmp_path_factory, 0)


def small_digits(tmp_path_factory: pytest.TempPathFactory, val: int) -> Dataset:
    raw, folder = tmp_path_factory.mktemp("raw") / "digits", tmp_path_factory.mktemp("processed")
    source = Digits(test_fraction=0.2, size=32)
    source.fetch(raw, [], 1, raw)
    whole = source.read(raw)
    count = TRAIN + VAL
    small = dataclasses.replace(
        whole,
        train_images=whole.train_images[:count],
        train_labels=whole.train_labels[:count],
        test_images=whole.test_images[:TEST],
        test_labels=whole.test_labels[:TEST],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        asked = asked_values(composed(["data=digits", *(["data.val_fraction=0"] if not val else [])]).data)
    order = np.arange(count)
    write(folder, small, order[val:], order[:val], source=source, wanted=source.title, asked=asked, used=asked)
    return Dataset.open(folder)
