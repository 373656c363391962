"""`make bench-sweep`: the pauses between trials, and a smoke test."""

import re

import pytest
from measure import FinishedCommand
from scripts import output_of
from sweep_overhead import pauses


def test_a_pause_lasts_from_the_last_epoch_to_the_first_step_of_the_next_trial() -> None:
    lines = [
        (1.0, "[0] epoch 1/2  train/loss 2.3035  1,200 images/s  0.5 s left\n"),
        (1.5, "[0] epoch 2/2  train/loss 2.2884  2,400 images/s\n"),
        (2.0, "[1] Trial 2/2: seed=1\n"),
        (4.0, "[1] epoch 1/2  train/loss 2.3035  1,200 images/s  0.5 s left\n"),
        (5.0, "[1] epoch 2/2  train/loss 2.2884  600 images/s\n"),
    ]
    # 300 steps of 4 images take a second of the first epoch.
    assert pauses(FinishedCommand(6.0, 0.1, "", lines), steps=600, trials=2) == [1.5]


@pytest.mark.long
def test_both_ways_are_measured_on_both_launchers() -> None:
    rows = re.findall(r"^\| sweep.*\|$", output_of("sweep_overhead", "--tiny"), re.MULTILINE)
    assert len(rows) == 3 and all("(once)" in row for row in rows)
