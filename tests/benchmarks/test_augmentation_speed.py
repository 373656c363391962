"""`benchmarks/augmentation_speed.py`: a smoke test of both tables."""

import re

import pytest
from scripts import output_of

from helpers.config_project import options_of


@pytest.mark.long
def test_each_augmentation_and_loader_has_a_row() -> None:
    output = output_of("augmentation_speed", "--images", "64", "--small-images", "128", "--repetitions", "1")
    rows = dict(re.findall(r"^\| ([\w ]+) \| ([\d.,]+) ", output, re.MULTILINE))
    assert {*options_of("augmentation"), "ours", "ImageFolder of JPEG files", "decoded images"} <= set(rows)
    assert all(float(value.replace(",", "")) > 0 for value in rows.values())
