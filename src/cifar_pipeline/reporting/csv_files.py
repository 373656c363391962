r"""Write CSV that is safe in a spreadsheet and on a terminal, and read it back as it was.

A cell that begins with `=`, `+`, `-`, `@`, a tab or the end of a line would be a formula: it gets a `'` before it, as
OWASP advises (owasp.org/www-community/attacks/CSV_Injection). Numbers stay numbers. Control characters and bytes of
file names that are no UTF-8 are written as `\u001b` and `\udcff`.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

# The wide forms are the same letters to a spreadsheet of East Asia.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_GUARDED = re.compile(r"'+[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?inf|nan")
# Characters to escape, and backslashes that would be taken for an escape when read.
_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]|\\(?=u[0-9a-f]{4})"
)
_ESCAPED = re.compile(r"\\u([0-9a-f]{4})")


def safe_cell(cell: object) -> object:
    """Return a cell as it is written: a text that would be a formula guarded, and unsafe characters escaped."""
    if not isinstance(cell, str) or _NUMBER.fullmatch(cell):
        return cell
    text = f"'{cell}" if _FORMULA.match(cell) else cell
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def plain_cell(text: str) -> str:
    """Return the text that `safe_cell` wrote."""
    cell = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)
    return cell[1:] if _GUARDED.match(cell) else cell


def write_rows(file: TextIO, rows: Iterable[Sequence[object]]) -> None:
    """Write rows to a file that was opened with `newline=""`; the same bytes on every system."""
    writer = csv.writer(file, lineterminator="\n")
    for row in rows:
        writer.writerow([safe_cell(cell) for cell in row])


def read_rows(path: Path) -> Iterator[list[str]]:
    """Yield the rows of a file that `write_rows` wrote, its header first."""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file):
            yield [plain_cell(text) for text in row]
