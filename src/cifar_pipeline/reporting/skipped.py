"""The table of the files that `preprocess` did not take."""

from collections.abc import Iterable
from pathlib import Path

from cifar_pipeline.files import whole_file
from cifar_pipeline.reporting.csv_files import write_rows


def write_skipped(skipped: Iterable[tuple[str, str]], path: Path) -> None:
    """Write `path,reason`, a row for each file that was not taken; without any, the header alone."""
    with whole_file(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        write_rows(file, [("path", "reason"), *skipped])
