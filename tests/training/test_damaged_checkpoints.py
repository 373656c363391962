"""A damaged checkpoint costs at most one epoch: the training resumes from the previous one, with the same result."""

import errno
import re
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
from cifar_pipeline.training.checkpoints import (
    BEST,
    LAST,
    PREVIOUS,
    EpochMetrics,
    RunDir,
    checkpoint_path,
    read_checkpoint,
)
from helpers.config_project import Project
from helpers.source_tree import PUBLISHED

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
        patch.chdir(PUBLISHED)
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


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [remove, flip_a_bit])
def test_without_the_best_weights_so_far_a_training_starts_from_scratch(
    copy: Project,
    config: DictConfig,
    digits: Dataset,
    undisturbed: list[EpochMetrics],
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
) -> None:
    """A later epoch would be taken for the best one, or the end of the training would fail each time."""
    again = start(copy, config, digits)
    best = checkpoint_path(again.run_dir.path, BEST)
    damage(best)
    assert without_speed(again.run().rows) == undisturbed
    assert re.search(r"best.ckpt is (missing|damaged).* the training starts from scratch", capsys.readouterr().err)
    accuracies = [row["val/accuracy"] for row in undisturbed]
    assert read_checkpoint(best)["epoch"] == accuracies.index(max(accuracies))


def test_removed_checkpoints_of_a_begun_training_are_told(
    copy: Project, config: DictConfig, digits: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = start(copy, config, digits).run_dir.path
    for name in (LAST, PREVIOUS):
        checkpoint_path(folder, name).unlink()
    assert checkpoints.find_resume_checkpoint(folder, {}, 1) is None
    assert "last.ckpt is missing, so the training starts from scratch" in capsys.readouterr().err


def write_result(folder: Path) -> RunDir:
    run_dir = RunDir(folder)
    run_dir.path.mkdir()
    with run_dir.write_result({"parameters": 1}, [{"epoch": 1.0, "train/loss": 0.5}]) as result:
        for name in (LAST, BEST):
            (result / name).mkdir()
            (result / name / "weights.safetensors").write_bytes(bytes(200))
    return run_dir


@pytest.mark.parametrize("damage", [remove, flip_a_bit, empty])
@pytest.mark.parametrize("name", ["best/weights.safetensors", "metadata.json", "history.csv", "../result.json"])
def test_a_result_with_a_removed_or_damaged_file_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Callable[[Path], None]
) -> None:
    run_dir = write_result(tmp_path / "abc")
    run_dir.drop_damaged_result()
    assert run_dir.is_finished and not capsys.readouterr().err
    damage(run_dir.result / name)
    run_dir.drop_damaged_result()
    assert not run_dir.is_finished
    assert f"{Path(name).name} " in capsys.readouterr().err


def test_a_damaged_mark_of_a_rerun_starts_the_rerun_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = write_result(tmp_path / "abc")
    with pytest.raises(KeyboardInterrupt), run_dir.lock(rerun=True) as begun:
        run_dir.checkpoint(LAST).touch()
        raise KeyboardInterrupt
    (run_dir.path / "rerun.json").write_text("{")
    with run_dir.lock(rerun=True) as again:
        assert again not in ("", begun) and not run_dir.checkpoints()
    assert "rerun.json is damaged: the rerun starts again" in capsys.readouterr().err
