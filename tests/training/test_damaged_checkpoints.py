"""A damaged checkpoint costs the epoch since the one before it, never the training, and never its result."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from broken_files import cut_off, empty, flip_a_bit
from omegaconf import DictConfig
from small_training import start, without_speed

from cifar_pipeline.config.compose import compose_config
from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.training import checkpoints
from cifar_pipeline.training.callbacks import EpochMetrics
from cifar_pipeline.training.checkpoints import LAST, PREVIOUS, checkpoint_path, read_checkpoint
from helpers.config_project import ROOT, Project

EPOCHS = 3


def put_another(path: Path) -> None:
    """That of another training, with weights of the same shapes."""
    checkpoint = read_checkpoint(path)
    torch.save({**checkpoint, "fingerprint": "another"}, path)


def put_something_else(path: Path) -> None:
    torch.save([1, 2, 3], path)


@pytest.fixture(scope="module")
def config() -> DictConfig:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return compose_config(["optimizer=adam", "trainer.batch_size=9", f"trainer.max_epochs={EPOCHS}"])


@pytest.fixture(scope="module")
def whole(config: DictConfig, digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[EpochMetrics]:
    """What the training comes to that nothing happens to."""
    return without_speed(start(Project(tmp_path_factory.mktemp("whole")), config, digits).run().rows)


@pytest.fixture(scope="module")
def broken_off(config: DictConfig, digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A training that was stopped in its last epoch. Only to look at: see `copy`."""
    project = Project(tmp_path_factory.mktemp("broken off"))
    training = start(project, config, digits)
    usual = training.module.on_train_epoch_start

    def stop() -> None:
        if training.module.current_epoch == EPOCHS - 1:
            raise KeyboardInterrupt
        usual()

    training.module.on_train_epoch_start = stop  # type: ignore[method-assign]
    with pytest.raises(SystemExit):
        training.run()
    return project


@pytest.fixture
def copy(broken_off: Project, tmp_path: Path) -> Project:
    shutil.copytree(broken_off.folder, tmp_path / "copy")
    return Project(tmp_path / "copy")


@pytest.mark.parametrize("damage", [cut_off, empty, flip_a_bit, put_another, put_something_else])
def test_the_checkpoint_before_a_damaged_one_is_taken_and_that_is_said(
    copy: Project,
    config: DictConfig,
    digits: Dataset,
    whole: list[EpochMetrics],
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
) -> None:
    again = start(copy, config, digits)
    damage(checkpoint_path(again.folder.path, LAST))
    rows = again.run().rows
    said = capsys.readouterr()
    before = checkpoint_path(again.folder.path, PREVIOUS)
    assert "Skipping it." in said.err and f"Resuming from checkpoint {before}" in said.out
    assert without_speed(rows) == whole


def test_where_all_checkpoints_are_damaged_the_training_begins_anew(
    copy: Project, config: DictConfig, digits: Dataset, whole: list[EpochMetrics], capsys: pytest.CaptureFixture[str]
) -> None:
    again = start(copy, config, digits)
    for name in (LAST, PREVIOUS):
        cut_off(checkpoint_path(again.folder.path, name))
    assert without_speed(again.run().rows) == whole
    assert capsys.readouterr().err.count("Skipping it.") == 2
    assert sorted(again.logger.epochs) == list(range(1, EPOCHS + 1))


def test_a_disk_that_fails_says_nothing_about_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"state_dict": {}}, checkpoint_path(tmp_path, LAST))

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error", "last.ckpt")

    monkeypatch.setattr(checkpoints, "ZipFile", fail)
    with pytest.raises(OSError, match="Input/output error"):
        checkpoints.find_resume_checkpoint(tmp_path, {}, 1)
