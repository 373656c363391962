"""What several packages' tests share: a project to break, and a small processed data set."""

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from xdist.scheduler import LoadScopeScheduling

from cifar_pipeline.config.compose import compose_config
from cifar_pipeline.data.dataset import Dataset, dataset_config
from cifar_pipeline.data.preprocessing import write_dataset
from cifar_pipeline.data.sources.digits import Digits
from helpers.config_project import ROOT, Project

TRAIN, VAL, TEST = 90, 30, 20
# Linux's file system in memory: what is forced to the disk there takes no time, and the tests do so thousands of times.
MEMORY, ENOUGH = Path("/dev/shm"), 4 << 30
# Folders whose tests share a workspace in which the real stages have run, and those beside them that take longest.
SHARING = ("pipeline", "sweeps", "crash_recovery", "environment_failures")
FIRST = (*SHARING, "notebooks", "training")


class Sharing(LoadScopeScheduling):
    """Keeps tests that share something slow to make in one process: a whole folder, or else a file.

    Those that take longest come first, so that all processes end together; xdist would begin with those that are many.
    (`xdist_group` marks do nothing with pytest 9.2 and xdist 3.8: what they add to a test's id is lost.)
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return next((name for name in SHARING if name in Path(path).parts), path)


def pytest_configure() -> None:
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ENOUGH:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
    # What is compiled is kept for all workspaces of the tests, and for the next time.
    compiled = ROOT / ".cache" / "compiled" / "tests"
    compiled.mkdir(0o700, parents=True, exist_ok=True)
    compiled.parent.chmod(0o700)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiled))
    # There is a process for each core: more threads would only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    config.option.loadscopereorder = False
    return Sharing(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((number for number, name in enumerate(FIRST) if name in item.path.parts), len(FIRST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """A folder of this name, filled by whoever asks first; all processes of this run of the tests see the same."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], object]) -> Path:
        done = root / f"{name}.made"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                (root / name).mkdir()
                make(root / name)
                done.touch()
        return root / name

    return made


@pytest.fixture(scope="session")
def empty_database(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """MLflow's database with its tables and no run, to copy: MLflow takes seconds to make one."""

    def make(folder: Path) -> None:
        from mlflow import MlflowClient

        MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()

    return made_once("empty database", make) / "mlflow.db"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    return Project.made(tmp_path)


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
        asked = dataset_config(compose_config(["data=digits", *(["data.val_fraction=0"] if not val else [])]).data)
    order = np.arange(count)
    write_dataset(
        folder,
        small,
        order[val:],
        order[:val],
        source=source,
        requested_title=source.title,
        requested=asked,
        effective=asked,
    )
    return Dataset.open(folder)
