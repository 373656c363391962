"""`make race`: what its row says, and that a race runs."""

import pytest
from measure import Ended
from race import RACES, Lap, Race, row, until_number
from scripts import output_of

LAPS = [Lap(0, 20.0, 8.0, 62.0), Lap(1, 24.0, 12.0, 63.0)]


def test_the_row_has_time_accuracy_and_what_was_not_training() -> None:
    text = row("quick", Race((), 62.0, 5, "tricks"), LAPS)
    assert "| tricks | 22.0 s [20.0 - 24.0], 55% of it not training |" in text
    assert "| 62.50 ± 0.71 % of 2 seeds (62.00, 63.00) | `make race RACE=quick` |" in text


def test_a_mark_that_is_missed_is_said() -> None:
    assert "(missed: 94 % was the aim)" in row("airbench94", Race((), 94.0, 3, ""), LAPS)


def test_the_clock_stops_at_the_number() -> None:
    lines = [(1.0, "Loading libraries ...\n"), (5.5, "Test accuracy: 62.90% on CIFAR-10\n"), (9.0, "Report: x\n")]
    assert until_number(Ended(10.0, 1.0, "", lines)) == 5.5


@pytest.mark.long
@pytest.mark.parametrize("name", RACES)
def test_every_race_runs(name: str) -> None:
    assert f"`make race RACE={name}`" in output_of("race", name, "--seeds", "0", "--tiny").splitlines()[-1]
