"""`benchmarks/sweep_store.py`: that it counts what runs leave, by the project's own code."""

import re
import subprocess
import sys

import pytest
from project import ROOT

EPOCHS, METRICS = 3, 6


@pytest.mark.long
def test_a_point_costs_rows_bytes_and_a_file() -> None:
    words = ["--points", "2", "--epochs", str(EPOCHS), "--warm-up", "1"]
    command = [sys.executable, "benchmarks/sweep_store.py", *words]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    rows, database, files, size = re.findall(r"([\d,.]+) (?:rows|bytes|files)", said)
    # Each point adds as much as the other, and a row for each metric of each epoch.
    assert rows.endswith(".0") and float(rows) > EPOCHS * METRICS
    assert float(files) >= 1 and int(size.replace(",", "")) > 0
    assert int(database.replace(",", "")) >= 0
