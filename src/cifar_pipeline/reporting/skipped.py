"""The table of the files that `preprocess` did not take."""

import csv
from collections.abc import Iterable
from pathlib import Path

from cifar_pipeline.files import whole_file


def write_skipped(skipped: Iterable[tuple[str, str]], path: Path) -> None:
    """Write `path,reason`, a row for each file that was not taken; without any, the header alone."""
    with whole_file(path) as part, part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "reason"])
        writer.writerows(skipped)
