"""What several rooms' tests share: a project to break, and a small processed data set."""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from project import ROOT, Project
from xdist.scheduler import LoadScopeScheduling

from cifar_pipeline.config.compose import composed
from cifar_pipeline.data.asked import asked_values
from cifar_pipeline.data.dataset import Dataset, write
from cifar_pipeline.data.sources.digits import Digits

TRAIN, VAL, TEST = 90, 30, 20
# Linux's file system in memory: what is forced to the disk there takes no time, and the tests do so thousands of times.
MEMORY, ENOUGH = Path("/dev/shm"), 4 << 30
# Folders whose tests share a workspace in which the real stages have run.
SHARING = ("pipeline", "sweeps", "kills", "faults")


class Sharing(LoadScopeScheduling):
    """Keeps tests that share something slow to make in one process: a whole folder, or else a file.

    (`xdist_group` marks do nothing with pytest 9.2 and xdist 3.8: what they add to a test's id is lost.)
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return next((name for name in SHARING if name in Path(path).parts), path)


def pytest_configure() -> None:
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ENOUGH:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return Sharing(config, log)


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
