"""`make speedrun`: the row that it prints, and a smoke test of each recipe."""

import pytest
from measure import FinishedCommand
from scripts import output_of
from speedrun import RECIPES, Recipe, SeedResult, row
from train_and_evaluate import seconds_to_accuracy

RESULTS = [SeedResult(0, 20.0, 8.0, 62.0), SeedResult(1, 24.0, 12.0, 63.0)]


def test_the_row_has_time_accuracy_and_what_was_not_training() -> None:
    text = row("quick", Recipe((), 62.0, 5, "tricks"), RESULTS)
    assert "| tricks | 22.0 s [20.0 - 24.0], 55% of it not training |" in text
    assert "| 62.50 ± 0.71 % of 2 seeds (62.00, 63.00) | `make speedrun RECIPE=quick` |" in text


def test_a_missed_target_is_in_the_row() -> None:
    assert "(target missed: 94 %)" in row("airbench94", Recipe((), 94.0, 3, ""), RESULTS)


def test_the_time_ends_at_the_test_accuracy() -> None:
    lines = [(1.0, "Loading libraries ...\n"), (5.5, "Test accuracy: 62.90% on CIFAR-10\n"), (9.0, "Report: x\n")]
    assert seconds_to_accuracy(FinishedCommand(10.0, 1.0, "", lines)) == 5.5


@pytest.mark.long
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs(name: str) -> None:
    assert f"`make speedrun RECIPE={name}`" in output_of("speedrun", name, "--seeds", "0", "--tiny").splitlines()[-1]
