"""A result is published under the lock of its run directory: no other process can prune or replace it meanwhile."""

from collections.abc import Mapping
from pathlib import Path

import lightning.pytorch  # noqa: F401  (imported before a fixture hides the GPU)
import pytest

from cifar_pipeline.stages.evaluate import evaluate
from cifar_pipeline.stages.train import train
from cifar_pipeline.training.run_dir import RunDir
from cifar_pipeline.utils.atomic import is_locked
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import Project

QUICK = ("data=digits", "trainer.batch_size=45", "trainer.max_epochs=1")


def test_the_run_dir_is_locked_until_its_result_is_published_and_while_it_is_read(
    ready: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked, original = [], RunDir.copy_to

    def copy_to(self: RunDir, root: Path, run: Mapping[str, str]) -> None:
        locked.append(is_locked(self.path))
        original(self, root, run)
        locked.append(is_locked(self.path))

    monkeypatch.setattr(RunDir, "copy_to", copy_to)
    ended = ready.start(train, *QUICK)
    assert ended.code == 0, ended.err
    assert locked == [True, True]
    (folder,) = (path for path in (ready.folder / ".cache" / "trainings").iterdir() if path.is_dir())
    assert not is_locked(folder)
    assert (ready.folder / "models" / "run.json").is_file() and (ready.folder / "reports" / "history.csv").is_file()

    def load(*_: object) -> None:
        locked.append(is_locked(Path("models")))
        raise UserError("Stop here.")

    monkeypatch.setattr("cifar_pipeline.inference.predictor.Predictor.open", load)
    assert ready.start(evaluate, "data=digits").err == "Stop here.\n"
    assert locked == [True, True, True]
