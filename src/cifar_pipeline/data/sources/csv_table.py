"""A table that names images: a row for each, with its path, its class and, where wanted, its part.

Tables of CSV, read strictly: whatever may be meant in two ways is refused, with the file and the line.
"""

import codecs
import csv
import io
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from cifar_pipeline.config.dvc_inputs import reject_outside
from cifar_pipeline.data.sources.base import SPLITS
from cifar_pipeline.data.sources.image_files import Group, ImageEntry, ImageFilesSource, Listing
from cifar_pipeline.utils.console import info
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.safe_io import open_regular

# Byte order marks of what spreadsheets call "Unicode"; the longer ones first, because they begin alike.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


class CsvRow(NamedTuple):
    """The cells of a row, and the line that it begins in."""

    line: int
    cells: list[str]


def read_csv_rows(path: Path) -> tuple[list[str], Iterator[CsvRow]]:
    """Read the names of a table's columns, and its rows, each with as many cells.

    Raises:
        Refusal: naming the line, where the table is not UTF-8, or not in commas, where a quote is never closed, two
            columns have one name, a row has too many cells or too few, or is blank before the last one.
        OSError: there is no such file, or it may not be read.
    """
    text = _text(path)
    rows = _rows(path, text)
    first = next(rows, CsvRow(1, []))
    columns = [name.strip() for name in first.cells]
    if len(columns) == 1:
        for separator, name in SEPARATORS.items():
            if separator in columns[0]:
                raise UserError(f"{path}: its columns are separated by {name}; save it with commas.")
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise UserError(
            f"{path}, line {first.line}: {f'the column {twice}' if twice else 'a column without a name'} is "
            "there twice; give each column a name of its own."
        )
    return columns, _checked(path, columns, rows)


def _checked(path: Path, columns: list[str], rows: Iterator[CsvRow]) -> Iterator[CsvRow]:
    blank = 0
    for row in rows:
        where = f"{path}, line {row.line}"
        if not row.cells:
            blank = blank or row.line
            continue
        if blank:
            raise UserError(f"{path}, line {blank}: the line is blank, and rows follow: remove it.")
        if any("\n" in cell or "\r" in cell for cell in row.cells):
            raise UserError(f"{where}: a cell goes on in the next line; close the quote that opens in it.")
        if len(row.cells) != len(columns):
            cells = "1 cell" if len(row.cells) == 1 else f"{len(row.cells)} cells"
            hint = " A comma in a cell takes quotes around the cell." if len(row.cells) > len(columns) else ""
            raise UserError(f"{where}: the row has {cells} for {len(columns)} columns ({','.join(columns)}).{hint}")
        yield row


def _rows(path: Path, text: str) -> Iterator[CsvRow]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            yield CsvRow(line, next(reader))
        except StopIteration:
            return
        except csv.Error as error:
            reason = "a quote opens here and is never closed" if "unexpected end of data" in str(error) else str(error)
            raise UserError(f"{path}, line {line}: this is no CSV ({reason}).") from None


def _text(path: Path) -> str:
    """The text of a table in UTF-8. Raises Refusal for other encodings and for NUL bytes."""
    with open_regular(path) as file:
        content = file.read()
    for mark, name in BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            raise UserError(f"{path} is {name}: save it as UTF-8.")
    if b"\0" in content:
        raise UserError(
            f"{path}, line {_line_of(content, content.index(0))}: there is a NUL byte; save it as text, UTF-8."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The mark that `utf-8-sig` takes off is not counted in `start`; it holds no line end.
        line, byte = _line_of(content, error.start), error.object[error.start]
        raise UserError(
            f"{path}, line {line}: this is not UTF-8 (byte 0x{byte:02x}); save the table as UTF-8."
        ) from None


def _line_of(content: bytes, place: int) -> int:
    return content.count(b"\n", 0, place) + 1


PATH_COLUMN, LABEL_COLUMN, SPLIT_COLUMN = "path", "label", "split"
REQUIRED_COLUMNS = (PATH_COLUMN, LABEL_COLUMN)


class CsvTable(ImageFilesSource):
    """The source of a table of CSV, `table` below the root, its paths relative to the root.

    Its first line names the columns: path, label and, where the parts are given, split (train, val or test). Others
    are not read, and said.
    """

    name = "csv_table"
    wanted = "the table must name at least two classes."

    def __init__(self, csv_file: str, **options: Any) -> None:
        super().__init__(**options)
        reject_outside(csv_file, self.root, "data.csv_file")
        self.csv_path = self.root / csv_file

    def listed(self) -> Listing:
        """What the rows say, in the order of the paths. Raises Refusal, with the line, where one makes no sense."""
        try:
            columns, rows = read_csv_rows(self.csv_path)
        except FileNotFoundError:
            raise UserError(
                f"There is no {self.csv_path}: put the table there, its first line `path,label` (and `,split`), or name "
                "it by data.csv_file."
            ) from None
        except PermissionError:
            raise UserError(f"{self.csv_path} may not be read: allow it (`chmod u+r {self.csv_path}`).") from None
        self._require_columns(columns)
        listed = sorted(self._read(columns, rows), key=lambda one: one.path)
        if not listed:
            raise UserError(f"{self.csv_path} names no image: below its first line it needs a row for each.")
        groups = {(one.label, one.part): self._group(one) for one in listed}
        return Listing(listed, groups=groups)

    def _group(self, one: ImageEntry) -> Group:
        return Group(one.label, one.part, f"class {one.label}" + (f" of the {one.part} part" if one.part else ""))

    def _require_columns(self, names: list[str]) -> None:
        missing = [name for name in REQUIRED_COLUMNS if name not in names]
        if missing:
            raise UserError(
                f"{self.csv_path} has no column {' and no column '.join(missing)}: its first line must name path and "
                f"label (and may name split); it says {','.join(names) or 'nothing'}."
            )
        others = [name for name in names if name not in (*REQUIRED_COLUMNS, SPLIT_COLUMN)]
        odd = next((name for name in others if name.strip().lower() in (*REQUIRED_COLUMNS, SPLIT_COLUMN)), None)
        if odd is not None:
            raise UserError(f"{self.csv_path}, line 1: write {odd.strip().lower()} instead of {odd}.")
        if others:
            info(f"{self.csv_path}: of its columns path, label and split are read, {', '.join(others)} is not.")

    def _read(self, columns: list[str], rows: Iterator[CsvRow]) -> Iterator[ImageEntry]:
        seen: dict[str, tuple[str, int]] = {}
        for row in rows:
            where = f"{self.csv_path}, line {row.line}"
            one = self._listed(dict(zip(columns, row.cells, strict=True)), where)
            alike = unicodedata.normalize("NFC", one.path).casefold()
            other, line = seen.setdefault(alike, (one.path, row.line))
            if line != row.line and (other == one.path or self._is_one_file(other, one.path)):
                named = one.path if other == one.path else f"{one.path} is {other}, which"
                raise UserError(f"{where}: {named} stands in line {line} already; an image has one row.")
            yield one

    def _is_one_file(self, one: str, other: str) -> bool:
        """Whether two spellings name one file, as on a disk that does not tell upper case from lower."""
        try:
            return (self.root / one).samefile(self.root / other)
        except OSError:
            return False

    def _listed(self, row: dict[str, str], where: str) -> ImageEntry:
        path, label = (row[name].strip() for name in REQUIRED_COLUMNS)
        if not path or not label:
            raise UserError(f"{where}: the row has no {'label' if path else 'path'}.")
        place = PurePosixPath(path)
        if place.is_absolute() or Path(path).is_absolute() or ".." in place.parts:
            raise UserError(f"{where}: {path} lies outside of {self.root}, where DVC does not see it change.")
        part = row.get(SPLIT_COLUMN, "").strip()
        if SPLIT_COLUMN in row and part not in SPLITS:
            raise UserError(
                f"{where}: split is {part or 'empty'}; it must be {', '.join(SPLITS[:-1])} or {SPLITS[-1]}."
            )
        return ImageEntry(place.as_posix(), label, part)
