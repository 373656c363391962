"""runtime.profiler writes where the time of a training goes."""

import pytest
from small_training import CPU, start

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.training.setup import TrainingSetup
from cifar_pipeline.training.trainer import PROFILERS, fit
from helpers.config_project import Project


@pytest.mark.parametrize(("profiler", "text"), [("simple", "run_training_epoch"), ("pytorch", "Self CPU time total")])
def test_a_profile_names_what_took_the_time(
    project: Project, digits: Dataset, capsys: pytest.CaptureFixture[str], profiler: str, text: str
) -> None:
    assert profiler in PROFILERS
    made = start(project, project.compose("trainer.max_epochs=1", "trainer.batch_size=9"), digits)
    setup = TrainingSetup(made.module, made.datamodule, made.config.trainer, CPU, made.run_dir, profiler=profiler)
    fit(setup, [made.logger])
    profile = made.run_dir.path / "fit-profile.txt"
    assert text in profile.read_text()
    assert str(profile) in capsys.readouterr().out
