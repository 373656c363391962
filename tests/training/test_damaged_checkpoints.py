"""A damaged checkpoint costs at most one epoch: the training resumes from the previous one, with the same result."""

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
from cifar_pipeline.training.checkpoints import LAST, PREVIOUS, EpochMetrics, checkpoint_path, read_checkpoint
from helpers.config_project import ROOT, Project

EPOCHS = 3


def put_another(path: Path) -> None:
    """Replace a checkpoint by one of another training with the same shapes."""
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
def undisturbed(config: DictConfig, digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[EpochMetrics]:
    """The rows of a training without interruption."""
    return without_speed(start(Project(tmp_path_factory.mktemp("undisturbed")), config, digits).run().rows)


@pytest.fixture(scope="module")
def interrupted(config: DictConfig, digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A training that was stopped in its last epoch; use `copy` to change it."""
    project = Project(tmp_path_factory.mktemp("interrupted"))
    training = start(project, config, digits)
    original = training.module.on_train_epoch_start

    def stop() -> None:
        if training.module.current_epoch == EPOCHS - 1:
            raise KeyboardInterrupt
        original()

    training.module.on_train_epoch_start = stop  # type: ignore[method-assign]
    with pytest.raises(SystemExit):
        training.run()
    return project


@pytest.fixture
def copy(interrupted: Project, tmp_path: Path) -> Project:
    shutil.copytree(interrupted.folder, tmp_path / "copy")
    return Project(tmp_path / "copy")


@pytest.mark.parametrize("damage", [cut_off, empty, flip_a_bit, put_another, put_something_else])
def test_a_damaged_checkpoint_is_skipped_with_a_warning_and_the_previous_one_is_used(
    copy: Project,
    config: DictConfig,
    digits: Dataset,
    undisturbed: list[EpochMetrics],
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
) -> None:
    again = start(copy, config, digits)
    damage(checkpoint_path(again.run_dir.path, LAST))
    rows = again.run().rows
    output = capsys.readouterr()
    previous = checkpoint_path(again.run_dir.path, PREVIOUS)
    assert "Skipping it." in output.err and f"Resuming from checkpoint {previous}" in output.out
    assert without_speed(rows) == undisturbed


def test_a_training_with_only_damaged_checkpoints_starts_from_scratch(
    copy: Project,
    config: DictConfig,
    digits: Dataset,
    undisturbed: list[EpochMetrics],
    capsys: pytest.CaptureFixture[str],
) -> None:
    again = start(copy, config, digits)
    for name in (LAST, PREVIOUS):
        cut_off(checkpoint_path(again.run_dir.path, name))
    assert without_speed(again.run().rows) == undisturbed
    assert capsys.readouterr().err.count("Skipping it.") == 2
    assert sorted(again.logger.epochs) == list(range(1, EPOCHS + 1))


def test_a_disk_error_is_not_taken_for_a_damaged_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"state_dict": {}}, checkpoint_path(tmp_path, LAST))

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error", "last.ckpt")

    monkeypatch.setattr(checkpoints, "ZipFile", fail)
    with pytest.raises(OSError, match="Input/output error"):
        checkpoints.find_resume_checkpoint(tmp_path, {}, 1)
