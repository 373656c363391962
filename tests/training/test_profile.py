"""Where a training's time goes is one choice away."""

import pytest
from small_training import CPU, start

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.training.trainer import PROFILERS, TrainingSetup, fit
from helpers.config_project import Project


@pytest.mark.parametrize(("profiler", "told"), [("simple", "run_training_epoch"), ("pytorch", "Self CPU time total")])
def test_a_profile_names_what_took_the_time(
    project: Project, digits: Dataset, capsys: pytest.CaptureFixture[str], profiler: str, told: str
) -> None:
    assert profiler in PROFILERS
    made = start(project, project.compose("trainer.max_epochs=1", "trainer.batch_size=9"), digits)
    plan = TrainingSetup(made.module, made.images, made.config.trainer, CPU, made.folder, profiler=profiler)
    fit(plan, made.logger)
    profile = made.folder.path / "fit-profile.txt"
    assert told in profile.read_text()
    assert str(profile) in capsys.readouterr().out
