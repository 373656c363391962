"""A damaged checkpoint costs the epoch since the one before it, never the training, and never its result."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from broken_files import cut_off, empty, flip_a_bit
from omegaconf import DictConfig
from project import Project
from small_training import Training, start, without_speed

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.training.checkpoints import BEFORE, LAST, checkpoint_path, read_checkpoint

EPOCHS = 3


def put_another(path: Path) -> None:
    """That of another training, with weights of the same shapes."""
    checkpoint = read_checkpoint(path)
    torch.save({**checkpoint, "identity": "another"}, path)


def put_something_else(path: Path) -> None:
    torch.save([1, 2, 3], path)


@pytest.fixture
def config(project: Project) -> DictConfig:
    return project.compose("optimizer=adam", "trainer.batch_size=9", f"trainer.max_epochs={EPOCHS}")


def broken_off(project: Project, config: DictConfig, digits: Dataset) -> Training:
    """A training that was stopped in its last epoch."""
    training = start(project, config, digits)
    usual = training.module.on_train_epoch_start

    def stop() -> None:
        if training.module.current_epoch == EPOCHS - 1:
            raise KeyboardInterrupt
        usual()

    training.module.on_train_epoch_start = stop  # type: ignore[method-assign]
    with pytest.raises(SystemExit):
        training.run()
    return training


@pytest.mark.parametrize("damage", [cut_off, empty, flip_a_bit, put_another, put_something_else])
def test_the_checkpoint_before_a_damaged_one_is_taken_and_that_is_said(
    project: Project,
    config: DictConfig,
    digits: Dataset,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
) -> None:
    whole = start(project, config, digits, project.folder / "whole").run()
    folder = broken_off(project, config, digits).folder.path
    damage(checkpoint_path(folder, LAST))
    capsys.readouterr()
    again = start(project, config, digits).run()
    said = capsys.readouterr()
    assert "passed over" in said.err and f"Going on from the checkpoint {checkpoint_path(folder, BEFORE)}" in said.out
    assert without_speed(again.rows) == without_speed(whole.rows)


def test_where_all_checkpoints_are_damaged_the_training_begins_anew(
    project: Project, config: DictConfig, digits: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = start(project, config, digits, project.folder / "whole").run()
    folder = broken_off(project, config, digits).folder.path
    for name in (LAST, BEFORE):
        cut_off(checkpoint_path(folder, name))
    again = start(project, config, digits)
    assert without_speed(again.run().rows) == without_speed(whole.rows)
    assert capsys.readouterr().err.count("passed over") == 2
    assert sorted(again.logger.epochs) == list(range(1, EPOCHS + 1))
