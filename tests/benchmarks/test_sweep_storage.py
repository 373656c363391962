"""`benchmarks/sweep_storage.py`: count the rows, bytes and files of logged runs."""

import re

import pytest
from scripts import output_of

EPOCHS, METRICS = 3, 6


@pytest.mark.long
def test_a_trial_adds_rows_bytes_and_a_file() -> None:
    output = output_of("sweep_storage", "--trials", "2", "--epochs", str(EPOCHS), "--warm-up", "1")
    # The growth in bytes is not checked: it may be zero, because the database allocates pages in advance.
    rows, _, files, size = re.findall(r"([\d,.]+) (?:rows|bytes|files)", output)
    # Each trial adds the same number of rows, one for each metric of each epoch.
    assert rows.endswith(".0") and float(rows) > EPOCHS * METRICS
    assert float(files) >= 1 and int(size.replace(",", "")) > 0
