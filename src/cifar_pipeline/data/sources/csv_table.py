"""A table that names pictures: a row for each, with its path, its class and, where wanted, its part."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cifar_pipeline.config.watched import refuse_outside
from cifar_pipeline.console import Refusal
from cifar_pipeline.data.official import PARTS
from cifar_pipeline.data.sources.own_pictures import Listed, OwnPictures

NEEDED, SPLIT = ("path", "label"), "split"


class CsvTable(OwnPictures):
    """The source of a table of CSV, `table` below the root, its paths relative to the root.

    Its first line names the columns: path, label and, where the parts are given, split (train, val or test).
    """

    name = "csv_table"
    wanted = "the table must name at least two classes."

    def __init__(self, table: str, **options: Any) -> None:
        super().__init__(**options)
        refuse_outside(table, self.root, "data.table")
        self.table = self.root / table

    def listed(self) -> list[Listed]:
        """What the rows say, in the order of the paths. Raises Refusal, with the line, where one makes no sense."""
        try:
            with self.table.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.DictReader(file, strict=True)
                self._require_columns(rows.fieldnames or [])
                listed = list(self._read(rows))
        except FileNotFoundError:
            raise Refusal(
                f"There is no {self.table}: put the table there, its first line `path,label` (and `,split`), or name "
                "it by data.table."
            ) from None
        except (csv.Error, UnicodeDecodeError) as error:
            raise Refusal(f"{self.table} is no CSV in UTF-8 ({error}).") from None
        return sorted(listed, key=lambda one: one.path)

    def _require_columns(self, names: Any) -> None:
        missing = [name for name in NEEDED if name not in names]
        if missing:
            raise Refusal(
                f"{self.table} has no column {' and no column '.join(missing)}: its first line must name path and "
                f"label (and may name split); it says {','.join(names) or 'nothing'}."
            )

    def _read(self, rows: "csv.DictReader[str]") -> Iterator[Listed]:
        seen: dict[str, int] = {}
        for row in rows:
            where = f"{self.table}, line {rows.line_num}"
            one = self._row(row, where)
            if one.path in seen:
                raise Refusal(f"{where}: {one.path} stands in line {seen[one.path]} already; a picture has one row.")
            seen[one.path] = rows.line_num
            yield one

    def _row(self, row: Mapping[str, str | None], where: str) -> Listed:
        path, label = ((row[name] or "").strip() for name in NEEDED)
        if not path or not label:
            raise Refusal(f"{where}: the row has no {'label' if path else 'path'}.")
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise Refusal(f"{where}: {path} lies outside of {self.root}, where DVC does not see it change.")
        if SPLIT not in row:
            return Listed(Path(path).as_posix(), label)
        part = (row[SPLIT] or "").strip()
        if part not in PARTS:
            raise Refusal(f"{where}: split is {part or 'empty'}; it must be {', '.join(PARTS[:-1])} or {PARTS[-1]}.")
        return Listed(Path(path).as_posix(), label, part)
