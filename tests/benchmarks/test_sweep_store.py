"""`benchmarks/sweep_store.py`: that it counts what runs leave, by the project's own code."""

import re

import pytest
from scripts import output_of

EPOCHS, METRICS = 3, 6


@pytest.mark.long
def test_a_point_costs_rows_bytes_and_a_file() -> None:
    said = output_of("sweep_store", "--points", "2", "--epochs", str(EPOCHS), "--warm-up", "1")
    # How much the database grows is told as well, and may be nothing: it takes its pages beforehand.
    rows, _, files, size = re.findall(r"([\d,.]+) (?:rows|bytes|files)", said)
    # Each point adds as much as the other, and a row for each metric of each epoch.
    assert rows.endswith(".0") and float(rows) > EPOCHS * METRICS
    assert float(files) >= 1 and int(size.replace(",", "")) > 0
