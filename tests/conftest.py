"""Fixtures shared by several folders: a project to modify, and a small processed data set; scheduling of tests."""

import dataclasses
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from omegaconf import OmegaConf
from xdist.scheduler import LoadScopeScheduling

from cifar_pipeline.config import compose, local_settings
from cifar_pipeline.config.compose import compose_config, restrict_to_stage
from cifar_pipeline.data.dataset import Dataset, dataset_config
from cifar_pipeline.data.preprocessing import write_dataset
from cifar_pipeline.data.sources.digits import Digits
from cifar_pipeline.utils.console import clear_status, configure_logging
from helpers import compositions
from helpers.config_project import ROOT, Project
from helpers.environment import environment_kept
from helpers.fork_server import ADDRESS, connect
from helpers.source_tree import PUBLISHED

TRAIN, VAL, TEST = 90, 30, 20
# Linux's file system in memory, where fsync takes no time; the tests call it thousands of times.
MEMORY_DIR, MIN_FREE_BYTES = Path("/dev/shm"), 4 << 30
# Folders whose tests share a workspace in which the real stages have run, and the slowest other ones.
SHARED_FOLDERS = ("pipeline", "sweeps", "crash_recovery", "environment_failures", "adoption")
FIRST_FOLDERS = (*SHARED_FOLDERS, "notebooks", "training")


class FolderScheduling(LoadScopeScheduling):
    """Run the tests of a file, or of a folder in SHARED_FOLDERS, in one process, as they share slow fixtures.

    The slowest come first, so that all processes end together; xdist would start with the largest groups.
    (`xdist_group` marks have no effect with pytest 9.2 and xdist 3.8: the suffix that they add to a test's id is lost.)
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return next((name for name in SHARED_FOLDERS if name in Path(path).parts), path)


def pytest_configure(config: pytest.Config) -> None:
    # The settings of this machine must not change a test: those of this clone are not read.
    for find in (local_settings.settings_file, local_settings.env_file):
        setattr(local_settings, find.__name__, elsewhere_than_here(find))
    # Functions that are tested without their script print the same lines.
    configure_logging()
    if os.access(MEMORY_DIR, os.W_OK) and shutil.disk_usage(MEMORY_DIR).free > MIN_FREE_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY_DIR))
    # Compiled code is shared by all workspaces of the tests, and kept for later runs.
    compiled = ROOT / ".cache" / "compiled" / "tests"
    compiled.mkdir(0o700, parents=True, exist_ok=True)
    compiled.parent.chmod(0o700)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiled))
    # There is a process for each core: more threads would only compete.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Tests download artifacts in threads, beside others that capture the output.
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    # A run in the background ignores Ctrl-C, and its commands would inherit that. (`preexec_fn` would set it for each,
    # but with that a command takes 0.04 s more to start.)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # With `make test-long` each command is a new process, as for users.
    if hasattr(os, "fork") and config.option.markexpr == "not long" and ADDRESS not in os.environ:
        os.environ[ADDRESS] = str(Path(tempfile.mkdtemp(prefix="fork-server-")) / "socket")
        # All tests need the server at once: it imports libraries while their processes import the tests.
        if config.args_source is not pytest.Config.ArgsSource.ARGS:
            connect().close()


def pytest_unconfigure() -> None:
    if ADDRESS in os.environ and "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(Path(os.environ.pop(ADDRESS)).parent)


def elsewhere_than_here(find: Callable[[], Path]) -> Callable[[], Path]:
    """Return a function that finds the file of every project but this one."""
    return lambda: Path("/nowhere") if find().is_relative_to(ROOT) else find()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    config.option.loadscopereorder = False
    return FolderScheduling(config, log)


def pytest_collection_finish() -> None:
    """Leave what was imported out of each search for garbage."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def priority(item: pytest.Item) -> int:
        indices = (index for index, name in enumerate(FIRST_FOLDERS) if name in item.path.parts)
        return next(indices, len(FIRST_FOLDERS))

    items.sort(key=priority)


@pytest.fixture(autouse=True, scope="session")
def compositions_kept() -> Iterator[None]:
    """Load equal files and compose equal configurations once in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", staticmethod(compositions.load))
        patch.setattr(compose, "compose", compositions.compose)
        yield


@pytest.fixture(autouse=True)
def environment_restored() -> Iterator[None]:
    """Restore the variables that a test has set, also by a function that reads `.env`, for the next test."""
    with environment_kept():
        yield


@pytest.fixture(autouse=True, scope="module")
def environment_of_file_restored() -> Iterator[None]:
    """Restore those that the fixtures of a file have set: `mlflow.set_tracking_uri` sets one."""
    with environment_kept():
        yield


@pytest.fixture(autouse=True)
def status_cleared() -> Iterator[None]:
    """Clear the status that a test leaves; it would be printed after seconds, into what another test captures."""
    yield
    clear_status()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Return a function that fills a folder of a given name once for all processes of a test run."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], object]) -> Path:
        marker = root / f"{name}.made"
        with FileLock(root / f"{name}.lock"):
            if not marker.exists():
                (root / name).mkdir()
                make(root / name)
                marker.touch()
        return root / name

    return made


@pytest.fixture(scope="session")
def empty_database(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """Return an MLflow database without runs, to be copied: MLflow takes seconds to create one."""

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
    """A subset of the digits, processed with `data=digits`: 90 train, 30 val and 20 test images."""
    return small_digits(tmp_path_factory, VAL)


@pytest.fixture(scope="session")
def digits_without_val(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The same subset without a validation split."""
    return small_digits(tmp_path_factory, 0)


def small_digits(tmp_path_factory: pytest.TempPathFactory, val: int) -> Dataset:
    raw, folder = tmp_path_factory.mktemp("raw") / "digits", tmp_path_factory.mktemp("processed")
    source = Digits(test_fraction=0.2, size=32)
    source.fetch(raw, [], 1, raw)
    dataset = source.read(raw)
    count = TRAIN + VAL
    small = dataclasses.replace(
        dataset,
        train_images=dataset.train_images[:count],
        train_labels=dataset.train_labels[:count],
        test_images=dataset.test_images[:TEST],
        test_labels=dataset.test_labels[:TEST],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PUBLISHED)
        config = compose_config(["data=digits", *(["data.val_fraction=0"] if not val else [])])
        data_config = dataset_config(restrict_to_stage(config, "preprocess").data)
    order = np.arange(count)
    write_dataset(
        folder,
        small,
        order[val:],
        order[:val],
        source=source,
        requested_title=source.title,
        requested=data_config,
        effective=data_config,
    )
    return Dataset.open(folder)
