"""A table that names pictures: a row for each, with its path, its class and, where wanted, its part."""

import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from cifar_pipeline.config.watched import refuse_outside
from cifar_pipeline.console import Refusal, say
from cifar_pipeline.data.official import PARTS
from cifar_pipeline.data.sources.listing import Group, Listed, Listing
from cifar_pipeline.data.sources.own_pictures import OwnPictures
from cifar_pipeline.data.sources.strict_csv import Row, rows_of

PATH, LABEL, SPLIT = "path", "label", "split"
NEEDED = (PATH, LABEL)


class CsvTable(OwnPictures):
    """The source of a table of CSV, `table` below the root, its paths relative to the root.

    Its first line names the columns: path, label and, where the parts are given, split (train, val or test). Others
    are not read, and said.
    """

    name = "csv_table"
    wanted = "the table must name at least two classes."

    def __init__(self, table: str, **options: Any) -> None:
        super().__init__(**options)
        refuse_outside(table, self.root, "data.table")
        self.table = self.root / table

    def listed(self) -> Listing:
        """What the rows say, in the order of the paths. Raises Refusal, with the line, where one makes no sense."""
        try:
            columns, rows = rows_of(self.table)
        except FileNotFoundError:
            raise Refusal(
                f"There is no {self.table}: put the table there, its first line `path,label` (and `,split`), or name "
                "it by data.table."
            ) from None
        except PermissionError:
            raise Refusal(f"{self.table} may not be read: allow it (`chmod u+r {self.table}`).") from None
        self._require_columns(columns)
        listed = sorted(self._read(columns, rows), key=lambda one: one.path)
        if not listed:
            raise Refusal(f"{self.table} names no picture: below its first line it needs a row for each.")
        groups = {(one.label, one.part): self._group(one) for one in listed}
        return Listing(listed, groups=groups)

    def _group(self, one: Listed) -> Group:
        return Group(one.label, one.part, f"class {one.label}" + (f" of the {one.part} part" if one.part else ""))

    def _require_columns(self, names: list[str]) -> None:
        missing = [name for name in NEEDED if name not in names]
        if missing:
            raise Refusal(
                f"{self.table} has no column {' and no column '.join(missing)}: its first line must name path and "
                f"label (and may name split); it says {','.join(names) or 'nothing'}."
            )
        others = [name for name in names if name not in (*NEEDED, SPLIT)]
        odd = next((name for name in others if name.strip().lower() in (*NEEDED, SPLIT)), None)
        if odd is not None:
            raise Refusal(f"{self.table}, line 1: write {odd.strip().lower()} instead of {odd}.")
        if others:
            say(f"{self.table}: of its columns path, label and split are read, {', '.join(others)} is not.")

    def _read(self, columns: list[str], rows: Iterator[Row]) -> Iterator[Listed]:
        seen: dict[str, tuple[str, int]] = {}
        for row in rows:
            where = f"{self.table}, line {row.line}"
            one = self._listed(dict(zip(columns, row.cells, strict=True)), where)
            alike = unicodedata.normalize("NFC", one.path).casefold()
            other, line = seen.setdefault(alike, (one.path, row.line))
            if line != row.line and (other == one.path or self._is_one_file(other, one.path)):
                named = one.path if other == one.path else f"{one.path} is {other}, which"
                raise Refusal(f"{where}: {named} stands in line {line} already; a picture has one row.")
            yield one

    def _is_one_file(self, one: str, other: str) -> bool:
        """Whether two spellings name one file, as on a disk that does not tell upper case from lower."""
        try:
            return (self.root / one).samefile(self.root / other)
        except OSError:
            return False

    def _listed(self, row: dict[str, str], where: str) -> Listed:
        path, label = (row[name].strip() for name in NEEDED)
        if not path or not label:
            raise Refusal(f"{where}: the row has no {'label' if path else 'path'}.")
        place = PurePosixPath(path)
        if place.is_absolute() or Path(path).is_absolute() or ".." in place.parts:
            raise Refusal(f"{where}: {path} lies outside of {self.root}, where DVC does not see it change.")
        part = row.get(SPLIT, "").strip()
        if SPLIT in row and part not in PARTS:
            raise Refusal(f"{where}: split is {part or 'empty'}; it must be {', '.join(PARTS[:-1])} or {PARTS[-1]}.")
        return Listed(place.as_posix(), label, part)
