"""How far a training is, for a file or a pipe: a line at each epoch's end, and within one that takes long."""

import re

import pytest
from small_training import start

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.training import callbacks
from helpers.config_project import Project

TRAIN = 90


def said(project: Project, digits: Dataset, capsys: pytest.CaptureFixture[str]) -> list[str]:
    start(project, project.compose("trainer.max_epochs=3", "trainer.batch_size=9"), digits).run()
    return capsys.readouterr().out.splitlines()


def test_each_epoch_says_how_long_the_others_will_take(
    project: Project, digits: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = said(project, digits, capsys)
    assert [line.partition("  ")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    left = [re.search(r"  ([\d.]+) s left$", line) for line in lines]
    assert left[0] and left[1] and not left[2]
    assert 0 < float(left[0][1]) < 60


def test_an_epoch_that_takes_long_says_how_far_it_is(
    project: Project, digits: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "REFRESH_SECONDS", 0.0)
    monkeypatch.setattr(callbacks, "LINE_SECONDS", 0.0)
    lines = said(project, digits, capsys)
    tenths = [line for line in lines if line.startswith("epoch 2/3, images: ")]
    assert [re.findall(r"images: (\d+) %", line)[0] for line in tenths] == [str(tenth) for tenth in range(10, 101, 10)]
    assert re.fullmatch(r"epoch 2/3, images: 50 %, [\d,]+/s, [\d.]+ s left", tenths[4])
