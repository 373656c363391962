"""A result is published as a whole when its training has finished, and under the lock of its run directory."""

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch  # noqa: F401  (imported before a fixture hides the GPU)
import pytest

from cifar_pipeline.stages.evaluate import evaluate
from cifar_pipeline.stages.train import train
from cifar_pipeline.training.checkpoints import RunDir
from cifar_pipeline.training.module import Classifier
from cifar_pipeline.utils.atomic import is_locked
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import Project
from helpers.dir_snapshot import content_of

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


@pytest.mark.long
def test_an_interrupted_training_replaces_the_history_in_reports_only(
    ready: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, reports = ready.folder / "models", ready.folder / "reports"
    for stage, arguments in ((train, QUICK), (evaluate, ("data=digits",))):
        ended = ready.start(stage, *arguments)
        assert ended.code == 0, ended.err
    old_models, old_reports = content_of(models), content_of(reports)
    assert old_models["history.csv"] == old_reports["history.csv"]

    original = Classifier.on_train_batch_start

    def stop(self: Classifier, batch: Any, index: int) -> None:
        if self.current_epoch == 2:
            raise KeyboardInterrupt
        original(self, batch, index)

    longer = (*QUICK, "trainer.max_epochs=3")
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_train_batch_start", stop)
        assert ready.start(train, *longer).code == 128 + signal.SIGINT
    assert content_of(models) == old_models
    interrupted = content_of(reports)
    assert {name for name in interrupted if interrupted[name] != old_reports.get(name)} == {"history.csv"}
    assert [line[:2] for line in interrupted["history.csv"].splitlines()[1:]] == [b"1,", b"2,"]

    # The evaluation of the old model draws the curves of its own training.
    assert ready.start(evaluate, "data=digits").code == 0
    assert (reports / "learning_curves.png").read_bytes() == old_reports["learning_curves.png"]

    ended = ready.start(train, *longer)
    assert ended.code == 0, ended.err
    history = (reports / "history.csv").read_bytes()
    assert history.startswith(interrupted["history.csv"]) and len(history.splitlines()) == 1 + 3
    assert (models / "history.csv").read_bytes() == history
