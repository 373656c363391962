"""List images by a CSV file with a row for each image: its path, its class and optionally its split.

The CSV is parsed strictly: anything ambiguous raises UserError with the file and the line.
"""

import codecs
import csv
import io
import logging
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from cifar_pipeline.config.dvc_inputs import reject_outside
from cifar_pipeline.data.image_paths import existing_spelling
from cifar_pipeline.data.sources.base import SPLITS
from cifar_pipeline.data.sources.image_files import Group, ImageEntry, ImageFilesSource, Listing
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.safe_io import open_regular
from cifar_pipeline.utils.text import compose_characters, list_names

log = logging.getLogger(__name__)

# Byte order marks of the encodings that spreadsheets call "Unicode"; UTF-32 first, because UTF-16-LE is its prefix.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
PATH_COLUMN, LABEL_COLUMN, SPLIT_COLUMN = "path", "label", "split"
REQUIRED_COLUMNS = (PATH_COLUMN, LABEL_COLUMN)


class CsvRow(NamedTuple):
    """The cells of a row, and the line in which it begins."""

    line: int
    cells: list[str]


class CsvTable(ImageFilesSource):
    """Read the images that a CSV file lists; `csv_file` and the paths in it are relative to the root.

    The first line has the column names: path, label and optionally split (train, val or test). `group` names another
    column: images with the same text in it are never in two splits. Other columns are ignored, with a message.
    """

    name = "csv_table"
    expected_layout = "the CSV file must list at least two classes."

    def __init__(self, csv_file: str, **options: Any) -> None:
        super().__init__(**options)
        reject_outside(csv_file, self.root, "data.csv_file")
        self.csv_path = self.root / csv_file

    def list_images(self) -> Listing:
        """List the images of all rows, sorted by path. Raises UserError, with the line, for an invalid row."""
        try:
            columns, rows = read_csv_rows(self.csv_path)
        except FileNotFoundError:
            raise UserError(
                f"{self.csv_path} is missing: create it with the first line `path,label` (or `path,label,split`), or "
                "set data.csv_file."
            ) from None
        except PermissionError:
            raise UserError(f"{self.csv_path} cannot be read: run `chmod u+r {self.csv_path}`.") from None
        self._check_columns(columns)
        images = sorted(self._read_images(columns, rows), key=lambda image: image.path)
        if not images:
            raise UserError(f"{self.csv_path} lists no images: add a row for each image below its first line.")
        groups = {(image.label, image.split): self._group(image) for image in images}
        return Listing(images, groups=groups)

    def _group(self, image: ImageEntry) -> Group:
        name = f"class {image.label}" + (f" of the {image.split} split" if image.split else "")
        return Group(image.label, image.split, name)

    def _check_columns(self, columns: list[str]) -> None:
        missing = [name for name in REQUIRED_COLUMNS if name not in columns]
        if missing:
            raise UserError(
                f"{self.csv_path} has no column {' and no column '.join(missing)}: its first line must contain path "
                f"and label (and may contain split), but is {list_names(columns, ',') or 'empty'}."
            )
        if self.group is not None and self.group not in columns:
            raise UserError(
                f"{self.csv_path} has no column {self.group}, which data.group names: its first line is "
                f"{list_names(columns, ',')}; set data.group to one of these, or to null."
            )
        known = (*REQUIRED_COLUMNS, SPLIT_COLUMN, *([self.group] if self.group is not None else []))
        others = [name for name in columns if name not in known]
        similar = next((name for name in others if name.strip().lower() in (*REQUIRED_COLUMNS, SPLIT_COLUMN)), None)
        if similar is not None:
            raise UserError(f"{self.csv_path}, line 1: write {similar.strip().lower()} instead of {similar}.")
        if others:
            *first, last = [name for name in columns if name in known]
            log.info(f"{self.csv_path}: read the columns {', '.join(first)} and {last}, ignored {list_names(others)}.")

    def _read_images(self, columns: list[str], rows: Iterator[CsvRow]) -> Iterator[ImageEntry]:
        seen: dict[str, tuple[str, int]] = {}
        for row in rows:
            location = f"{self.csv_path}, line {row.line}"
            image = self._parse_row(dict(zip(columns, row.cells, strict=True)), location)
            normalized = compose_characters(image.path).casefold()
            other, line = seen.setdefault(normalized, (image.path, row.line))
            if line != row.line and (other == image.path or self._is_same_file(other, image.path)):
                path = image.path if other == image.path else f"{image.path} (the same file as {other})"
                raise UserError(f"{location}: {path} is already in line {line}; an image must have one row.")
            yield image

    def _is_same_file(self, one: str, other: str) -> bool:
        """Return whether two spellings are the same file, as on a case-insensitive file system."""
        try:
            return (self.root / one).samefile(self.root / other)
        except OSError:
            return False

    def _parse_row(self, row: dict[str, str], location: str) -> ImageEntry:
        path, label = (row[name].strip() for name in REQUIRED_COLUMNS)
        if not path or not label:
            raise UserError(f"{location}: the row has no {'label' if path else 'path'}.")
        parsed = PurePosixPath(path)
        if parsed.is_absolute() or Path(path).is_absolute() or ".." in parsed.parts:
            raise UserError(f"{location}: {path} is outside of {self.root}, where DVC does not track changes.")
        split = row.get(SPLIT_COLUMN, "").strip()
        if SPLIT_COLUMN in row and split not in SPLITS:
            raise UserError(
                f"{location}: split is {split or 'empty'}; it must be {', '.join(SPLITS[:-1])} or {SPLITS[-1]}."
            )
        group = row[self.group].strip() if self.group is not None else ""
        if self.group is not None and not group:
            raise UserError(f"{location}: {self.group} (data.group) is empty; each image must belong to a group.")
        spelling = existing_spelling(self.root / path).relative_to(self.root)
        return ImageEntry(spelling.as_posix(), label, split, group)


def read_csv_rows(path: Path) -> tuple[list[str], Iterator[CsvRow]]:
    """Read the column names of a CSV file, and iterate over its rows, each with as many cells.

    Raises:
        UserError: with the line, if the file is not UTF-8 or not separated by commas, a quote is not closed, a column
            name occurs twice, a row has too many or too few cells, or a line before the last row is blank.
        OSError: the file is missing or cannot be read.
    """
    rows = _parse(path, _decode(path))
    first = next(rows, CsvRow(1, []))
    columns = [name.strip() for name in first.cells]
    if len(columns) == 1:
        for separator, name in SEPARATORS.items():
            if separator in columns[0]:
                raise UserError(f"{path}: its columns are separated by {name}; save it with commas.")
    duplicate = next((name for name in columns if columns.count(name) > 1), None)
    if duplicate is not None:
        raise UserError(
            f"{path}, line {first.line}: {f'the column {duplicate}' if duplicate else 'a column without a name'} "
            "occurs twice; column names must be unique."
        )
    return columns, _check_rows(path, columns, rows)


def _check_rows(path: Path, columns: list[str], rows: Iterator[CsvRow]) -> Iterator[CsvRow]:
    blank_line = 0
    for row in rows:
        location = f"{path}, line {row.line}"
        if not row.cells:
            blank_line = blank_line or row.line
            continue
        if blank_line:
            raise UserError(f"{path}, line {blank_line}: the line is blank, but rows follow; remove it.")
        if any("\n" in cell or "\r" in cell for cell in row.cells):
            raise UserError(f"{location}: a cell continues in the next line; close its quote.")
        if len(row.cells) != len(columns):
            cells = "1 cell" if len(row.cells) == 1 else f"{len(row.cells)} cells"
            hint = " A cell that contains a comma needs quotes." if len(row.cells) > len(columns) else ""
            raise UserError(
                f"{location}: the row has {cells} for {len(columns)} columns ({list_names(columns, ',')}).{hint}"
            )
        yield row


def _parse(path: Path, text: str) -> Iterator[CsvRow]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            yield CsvRow(line, next(reader))
        except StopIteration:
            return
        except csv.Error as error:
            reason = "a quote is not closed" if "unexpected end of data" in str(error) else str(error)
            raise UserError(f"{path}, line {line}: invalid CSV ({reason}).") from None


def _decode(path: Path) -> str:
    """Read a file in UTF-8. Raises UserError for other encodings and for NUL bytes."""
    with open_regular(path) as file:
        content = file.read()
    for mark, name in BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            raise UserError(f"{path} is {name}: save it as UTF-8.")
    if b"\0" in content:
        raise UserError(f"{path}, line {_line_at(content, content.index(0))}: NUL byte; save the file as UTF-8 text.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # `start` does not count the byte order mark that `utf-8-sig` removes; it contains no line break.
        line, byte = _line_at(content, error.start), error.object[error.start]
        raise UserError(f"{path}, line {line}: not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8.") from None


def _line_at(content: bytes, position: int) -> int:
    return content.count(b"\n", 0, position) + 1
