"""CSV cells are never formulas in a spreadsheet, and read back unchanged."""

import csv
import io
from pathlib import Path

import pytest

from cifar_pipeline.reporting.tables import plain_cell, read_rows, safe_cell, write_rows

TEXTS = [
    "=1+1", "+cmd", "-cat", "@sum", "\tx", "\rx", "\nx", "'=1", "''-x", "'quoted'", "\uff1d1", "cat", "", "a,b",
    'a "b"', "two\nlines", "a\rb", "\x1b[2J", "\udcff.png", "\\udcff", "\\u005c", "\\\\u001b", "\u202egnp",
    "für", "C:\\users\\u", "--", "- 1",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_reads_back_as_it_was_and_is_no_formula(text: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        write_rows(file, [["name", "value"], [text, 1.5], [f"'{text}", -1]])
    assert list(read_rows(path)) == [["name", "value"], [text, "1.5"], [f"'{text}", "-1"]]
    for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")):
        assert row[0][:1] not in set("=+-@\t\r\n\uff1d")
    assert not {"\x1b", "\u202e", "\r"} & set(path.read_bytes().decode())


@pytest.mark.parametrize("number", ["-0.5", "+1", "1e-05", "-1.5E+3", "-inf", "nan", ".5", "3."])
def test_numbers_stay_numbers(number: str) -> None:
    assert safe_cell(number) == number
    assert plain_cell(number) == number
    assert float(number) or True


@pytest.mark.parametrize("number", [-0.5, -3, None])
def test_cells_that_are_not_text_are_unchanged(number: object) -> None:
    assert safe_cell(number) is number
