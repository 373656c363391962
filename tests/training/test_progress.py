"""Progress of a training in a file or a pipe: a line at each epoch's end, and within epochs that take long."""

import re

import pytest
from small_training import start

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.training import callbacks
from helpers.config_project import Project

TRAIN = 90


def train_and_read_lines(project: Project, digits: Dataset, capsys: pytest.CaptureFixture[str]) -> list[str]:
    start(project, project.compose("trainer.max_epochs=3", "trainer.batch_size=9"), digits).run()
    return capsys.readouterr().out.splitlines()


def test_each_epoch_reports_the_time_left(
    project: Project, digits: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = train_and_read_lines(project, digits, capsys)
    assert [line.partition("  ")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    time_left = [re.search(r"  ([\d.]+) s left$", line) for line in lines]
    assert time_left[0] and time_left[1] and not time_left[2]
    assert 0 < float(time_left[0][1]) < 60


def test_a_long_epoch_reports_its_progress(
    project: Project, digits: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "REFRESH_SECONDS", 0.0)
    monkeypatch.setattr(callbacks, "LINE_SECONDS", 0.0)
    lines = train_and_read_lines(project, digits, capsys)
    tenths = [line for line in lines if line.startswith("epoch 2/3, images: ")]
    assert [re.findall(r"images: (\d+) %", line)[0] for line in tenths] == [str(tenth) for tenth in range(10, 101, 10)]
    assert re.fullmatch(r"epoch 2/3, images: 50 %, [\d,]+/s, [\d.]+ s left", tenths[4])
