"""A result is published while its training is held: no other process can clear or replace it in between."""

from collections.abc import Mapping
from pathlib import Path

import lightning.pytorch  # noqa: F401  (before a fixture says that there is no GPU)
import pytest

from cifar_pipeline.stages.evaluate import evaluate
from cifar_pipeline.stages.train import train
from cifar_pipeline.training.run_dir import RunDir
from cifar_pipeline.utils.atomic import is_locked
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import Project

QUICK = ("data=digits", "trainer.batch_size=45", "trainer.max_epochs=1")


def test_the_training_is_held_until_its_result_is_published_and_that_while_it_is_read(
    ready: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, usual = [], RunDir.copy_to

    def publish(self: RunDir, root: Path, run: Mapping[str, str]) -> None:
        held.append(is_locked(self.path))
        usual(self, root, run)
        held.append(is_locked(self.path))

    monkeypatch.setattr(RunDir, "copy_to", publish)
    ended = ready.start(train, *QUICK)
    assert ended.code == 0, ended.err
    assert held == [True, True]
    (folder,) = (path for path in (ready.folder / ".cache" / "trainings").iterdir() if path.is_dir())
    assert not is_locked(folder)
    assert (ready.folder / "models" / "run.json").is_file() and (ready.folder / "reports" / "history.csv").is_file()

    def load(*_: object) -> None:
        held.append(is_locked(Path("models")))
        raise UserError("That is enough.")

    monkeypatch.setattr("cifar_pipeline.inference.predictor.Predictor.open", load)
    assert ready.start(evaluate, "data=digits").err == "That is enough.\n"
    assert held == [True, True, True]
