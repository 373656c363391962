"""A training that was stopped and resumed ends with the same result as one without interruption."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from small_training import start, without_speed

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.training import checkpoints
from cifar_pipeline.training.checkpoints import AtomicCheckpointIO, EpochMetrics, RunDir, load_weights
from cifar_pipeline.utils.process import Interrupted
from helpers.config_project import ROOT, Project


def config_with_randomness(project: Project, *more: str) -> DictConfig:
    """Three epochs of ten batches with random augmentation, a scheduler, and an optimizer with state."""
    return project.compose(
        "optimizer=adam",
        "scheduler=cosine",
        "augmentation=flip_crop",
        "trainer.batch_size=9",
        "trainer.max_epochs=3",
        *more,
    )


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_stopped_in_an_epoch_and_started_again_ends_with_the_same_weights(
    project: Project, digits: Dataset, epoch: int
) -> None:
    config = config_with_randomness(project)
    undisturbed = start(project, config, digits, project.folder / "undisturbed")
    expected = undisturbed.run()

    stopped = start(project, config, digits)
    original = stopped.module.on_train_batch_start

    def stop(batch: Any, index: int) -> None:
        if stopped.module.current_epoch == epoch and index == 4:
            raise KeyboardInterrupt
        original(batch, index)

    stopped.module.on_train_batch_start = stop  # type: ignore[method-assign]
    with pytest.raises(Interrupted) as interrupted:
        stopped.run()
    assert interrupted.value.code == 128 + signal.SIGINT
    assert sorted(stopped.logger.epochs) == list(range(1, epoch + 1))

    again = start(project, config, digits)
    again.logger.epochs = stopped.logger.epochs
    rows = again.run().rows
    assert without_speed(rows) == without_speed(expected.rows)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert sorted(again.logger.epochs) == [1, 2, 3]
    assert stopped.steps + again.steps == undisturbed.steps + 4  # those of the interrupted epoch
    for name, value in undisturbed.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], value), name


def test_a_moved_training_keeps_its_best_epoch(project: Project, digits: Dataset) -> None:
    # At this learning rate all epochs are equally good, and the first is the best.
    config = config_with_randomness(project, "optimizer.lr=1e-12", "scheduler=constant", "augmentation=none")
    (project.folder / "here").mkdir()
    stopped = start(project, config, digits, project.folder / "here" / "training")
    original = stopped.module.on_train_epoch_start

    def stop() -> None:
        if stopped.module.current_epoch == 1:
            raise KeyboardInterrupt
        original()

    stopped.module.on_train_epoch_start = stop  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        stopped.run()
    (project.folder / "here").rename(project.folder / "there")
    moved = start(project, config, digits, project.folder / "there" / "training")
    moved.logger.epochs = stopped.logger.epochs
    assert [row["epoch"] for row in moved.run().rows] == [1, 2, 3]
    assert checkpoints.read_checkpoint(moved.run_dir.checkpoint("best"))["epoch"] == 0
    assert not stopped.run_dir.path.exists()


def test_the_best_checkpoint_is_the_first_epoch_with_the_best_accuracy(project: Project, digits: Dataset) -> None:
    config = config_with_randomness(project, "optimizer.lr=1e-12", "scheduler=constant", "augmentation=none")
    training = start(project, config, digits)
    states = []
    original = training.module.on_validation_epoch_end

    def keep() -> None:
        states.append({name: value.clone() for name, value in training.module.state_dict().items()})
        original()

    training.module.on_validation_epoch_end = keep  # type: ignore[method-assign]
    rows = training.run().rows
    accuracies = [row["val/accuracy"] for row in rows]
    assert len(set(accuracies)) == 1  # at this learning rate all epochs are equally good, and the first is the best
    best = load_weights(training.run_dir.checkpoint("best"))
    last = load_weights(training.run_dir.checkpoint("last"))
    assert all(torch.equal(best[name], value) for name, value in states[0].items())
    assert all(torch.equal(last[name], value) for name, value in states[-1].items())
    assert not all(torch.equal(best[name], last[name]) for name in best)


def test_the_best_checkpoint_outlives_worse_epochs(project: Project, digits: Dataset) -> None:
    training = start(project, config_with_randomness(project), digits)
    accuracies, states = iter([0.3, 0.5, 0.4]), []

    def fake_accuracy() -> None:
        states.append({name: value.clone() for name, value in training.module.state_dict().items()})
        training.module.log("val/accuracy", next(accuracies), logger=False)

    training.module.on_validation_epoch_end = fake_accuracy  # type: ignore[method-assign]
    training.run()
    best = load_weights(training.run_dir.checkpoint("best"))
    assert all(torch.equal(best[name], value) for name, value in states[1].items())


def test_without_a_validation_split_there_is_no_best_checkpoint(project: Project, digits_without_val: Dataset) -> None:
    training = start(project, config_with_randomness(project), digits_without_val)
    rows = training.run().rows
    assert training.run_dir.checkpoints() == ["last"]
    files = sorted(path.name for path in training.run_dir.path.iterdir())
    assert files == ["last.ckpt", "previous.ckpt"]
    assert list(rows[0]) == ["epoch", "train/loss", "train/accuracy", "lr", "images_per_second"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO("abc").save_checkpoint({"state_dict": {"w": torch.ones(2)}}, path)

    def full(checkpoint: object, file: Any) -> None:
        file.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        AtomicCheckpointIO("abc").save_checkpoint({"state_dict": {"w": torch.zeros(2)}}, path)
    monkeypatch.undo()
    assert torch.equal(load_weights(path)["w"], torch.ones(2))


def test_a_checkpoint_that_holds_anything_but_tensors_is_not_loaded(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "extra": Path("/")}, tmp_path / "bad.ckpt")
    with pytest.raises(Exception, match="[Ww]eights"):
        load_weights(tmp_path / "bad.ckpt")


ROWS: list[EpochMetrics] = [{"epoch": 1.0, "train/loss": 2.302585}]


def finished(path: Path, age: int) -> RunDir:
    folder = RunDir(path)
    path.mkdir(parents=True)
    with folder.write_result({}, ROWS):
        pass
    assert folder.rows() == ROWS
    os.utime(folder.result, (1_000_000 - age, 1_000_000 - age))
    return folder


@pytest.mark.parametrize(("keep", "left"), [(0, []), (1, []), (2, ["young"]), (3, ["middle", "young"]), (9, None)])
def test_prune_keeps_the_newest_finished_trainings(tmp_path: Path, keep: int, left: list[str] | None) -> None:
    for age, name in enumerate(["young", "middle", "old"]):
        finished(tmp_path / name, age)
    (tmp_path / "broken_off").mkdir()
    this = finished(tmp_path / "this", 0)
    this.prune(keep)
    there = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert there == {"this", "broken_off", *(["young", "middle", "old"] if left is None else left)}


def test_prune_keeps_locked_trainings_and_unfinished_reruns(tmp_path: Path) -> None:
    for name in ("held", "rerun", "free"):
        finished(tmp_path / name, 0)
    with pytest.raises(KeyboardInterrupt), RunDir(tmp_path / "rerun").lock(rerun=True):
        raise KeyboardInterrupt
    code = (
        "import sys; from pathlib import Path; from cifar_pipeline.utils.atomic import exclusive_lock\n"
        "from cifar_pipeline.utils.console import configure_logging; configure_logging()\n"
        "with exclusive_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "held")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": ""},
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    this = finished(tmp_path / "this", 0)
    this.prune(keep=1)
    assert [(tmp_path / name).is_dir() for name in ("held", "rerun", "free")] == [True, True, False]
    holder.communicate(timeout=30)
    this.prune(keep=1)
    assert [(tmp_path / name).is_dir() for name in ("held", "rerun")] == [False, True]


def test_a_second_process_waits_for_the_lock(tmp_path: Path) -> None:
    code = (
        # What `lock` does; without torch, which takes seconds to load.
        "import sys; from pathlib import Path; from cifar_pipeline.utils.atomic import exclusive_lock\n"
        "from cifar_pipeline.utils.console import configure_logging; configure_logging()\n"
        "with exclusive_lock(Path(sys.argv[1])): print('held', flush=True)"
    )
    folder = RunDir(tmp_path / "abc")
    with folder.lock(rerun=False):
        (folder.path / "last.ckpt").touch()
        second = subprocess.Popen(
            [sys.executable, "-c", code, str(folder.path)],
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": str(ROOT / "src"), "PATH": ""},
        )
        assert second.stdout is not None
        assert "waiting for it to end" in second.stdout.readline()
        assert second.poll() is None
    assert second.communicate(timeout=30)[0] == "held\n"
    assert second.returncode == 0


def test_an_interrupted_rerun_is_resumed_and_the_old_result_stays(tmp_path: Path) -> None:
    folder = finished(tmp_path / "abc", 0)
    folder.checkpoint("last").write_text("of the first training")
    with pytest.raises(KeyboardInterrupt), folder.lock(rerun=True) as begun:
        assert begun and folder.is_finished and not folder.checkpoints()
        folder.checkpoint("last").write_text("of the rerun")
        raise KeyboardInterrupt
    with folder.lock(rerun=False) as other:
        assert not other and folder.has_unfinished_rerun  # the finished result is taken
    with folder.lock(rerun=True) as again:
        assert again == begun and folder.checkpoint("last").read_text() == "of the rerun"
    assert not folder.has_unfinished_rerun
    with folder.lock(rerun=True) as another:
        assert another not in ("", begun) and not folder.checkpoints()


def test_an_interrupted_rerun_without_an_older_result_is_resumed_by_any_command(tmp_path: Path) -> None:
    folder = RunDir(tmp_path / "abc")
    with pytest.raises(KeyboardInterrupt), folder.lock(rerun=True) as begun:
        raise KeyboardInterrupt
    with folder.lock(rerun=False) as again:
        assert again == begun
    assert not folder.has_unfinished_rerun


def test_an_interrupted_result_does_not_count_as_finished(tmp_path: Path) -> None:
    folder = RunDir(tmp_path / "abc")
    folder.path.mkdir()
    with pytest.raises(RuntimeError), folder.write_result({}, ROWS) as part:
        (part / "last").mkdir()
        raise RuntimeError
    assert not folder.is_finished
