"""Tables of CSV, read strictly: whatever may be meant in two ways is refused, with the file and the line."""

import codecs
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cifar_pipeline.console import Refusal
from cifar_pipeline.regular import open_regular

# Byte order marks of what spreadsheets call "Unicode"; the longer ones first, because they begin alike.
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


class Row(NamedTuple):
    """The cells of a row, and the line that it begins in."""

    line: int
    cells: list[str]


def rows_of(path: Path) -> tuple[list[str], Iterator[Row]]:
    """Read the names of a table's columns, and its rows, each with as many cells.

    Raises:
        Refusal: naming the line, where the table is not UTF-8, or not in commas, where a quote is never closed, two
            columns have one name, a row has too many cells or too few, or is blank before the last one.
        OSError: there is no such file, or it may not be read.
    """
    text = _text(path)
    rows = _rows(path, text)
    first = next(rows, Row(1, []))
    columns = [name.strip() for name in first.cells]
    if len(columns) == 1:
        for separator, name in SEPARATORS.items():
            if separator in columns[0]:
                raise Refusal(f"{path}: its columns are separated by {name}; save it with commas.")
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise Refusal(
            f"{path}, line {first.line}: {f'the column {twice}' if twice else 'a column without a name'} is "
            "there twice; give each column a name of its own."
        )
    return columns, _checked(path, columns, rows)


def _checked(path: Path, columns: list[str], rows: Iterator[Row]) -> Iterator[Row]:
    blank = 0
    for row in rows:
        where = f"{path}, line {row.line}"
        if not row.cells:
            blank = blank or row.line
            continue
        if blank:
            raise Refusal(f"{path}, line {blank}: the line is blank, and rows follow: remove it.")
        if any("\n" in cell or "\r" in cell for cell in row.cells):
            raise Refusal(f"{where}: a cell goes on in the next line; close the quote that opens in it.")
        if len(row.cells) != len(columns):
            cells = "1 cell" if len(row.cells) == 1 else f"{len(row.cells)} cells"
            hint = " A comma in a cell takes quotes around the cell." if len(row.cells) > len(columns) else ""
            raise Refusal(f"{where}: the row has {cells} for {len(columns)} columns ({','.join(columns)}).{hint}")
        yield row


def _rows(path: Path, text: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            yield Row(line, next(reader))
        except StopIteration:
            return
        except csv.Error as error:
            reason = "a quote opens here and is never closed" if "unexpected end of data" in str(error) else str(error)
            raise Refusal(f"{path}, line {line}: this is no CSV ({reason}).") from None


def _text(path: Path) -> str:
    """The text of a table in UTF-8. Raises Refusal for other encodings and for NUL bytes."""
    with open_regular(path) as file:
        content = file.read()
    for mark, name in MARKS.items():
        if content.startswith(mark):
            raise Refusal(f"{path} is {name}: save it as UTF-8.")
    if b"\0" in content:
        raise Refusal(
            f"{path}, line {_line_of(content, content.index(0))}: there is a NUL byte; save it as text, UTF-8."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The mark that `utf-8-sig` takes off is not counted in `start`; it holds no line end.
        line, byte = _line_of(content, error.start), error.object[error.start]
        raise Refusal(f"{path}, line {line}: this is not UTF-8 (byte 0x{byte:02x}); save the table as UTF-8.") from None


def _line_of(content: bytes, place: int) -> int:
    return content.count(b"\n", 0, place) + 1
