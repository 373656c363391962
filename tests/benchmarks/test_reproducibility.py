"""`benchmarks/reproducibility.py`: train each pair and report the differences."""

import pytest
import torch
from reproducibility import Trained, row
from scripts import output_of

ONE = Trained({"w": torch.tensor([1.0, 2.0])}, "abc", 0.5)


def test_equal_and_different_trainings_are_reported() -> None:
    assert row("twice", ONE, Trained({"w": torch.tensor([1.0, 2.0])}, "abc", 0.5)) == "| twice | equal | equal |"
    other = Trained({"w": torch.tensor([1.25, 2.0])}, "def", 0.4825)
    assert row("others", ONE, other) == "| others | 2.5e-01 | 1.75 % (50.00%, 48.25%) |"


@pytest.mark.long
def test_every_pair_is_trained() -> None:
    *_, eager, compiled, _, _, _ = output_of("reproducibility", "--tiny").splitlines()
    assert eager == "| eager engine, 1 thread, twice | equal | equal |"
    assert compiled == "| compiled engine, 1 thread, twice | equal | equal |"
