r"""Write predictions as CSV, JSON or a terminal table, and read CSV files back.

CSV is safe in a spreadsheet and on a terminal: a cell that begins with `=`, `+`, `-`, `@`, a tab or a line break would
be a formula and is prefixed with `'`, as OWASP advises (owasp.org/www-community/attacks/CSV_Injection). Numbers are
kept. Control characters and bytes of file names that are not UTF-8 are escaped as `\u001b` and `\udcff`.
"""

import csv
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.console import progress_bar, stderr_console, stdout_console
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import escape_control, escape_control_json, one_line, percent

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from cifar_pipeline.inference.predictor import Prediction


def write_confusion(
    path: str | os.PathLike[str], labels: "np.ndarray", predictions: "np.ndarray", classes: Sequence[str]
) -> None:
    """Write `actual,predicted` as class names, one row per image, for DVC's plot template `confusion`.

    In dvc.yaml: `plots: [{reports/confusion.csv: {template: confusion, x: predicted, y: actual}}]`. A name that begins
    with `=`, `+`, `-` or `@` is prefixed with `'`, which DVC's plot shows.

    Args:
        labels, predictions: `[N] int`, class indices.
        classes: class names, in order.
    """
    write_table(path, ["actual", "predicted"], zip(_names(labels, classes), _names(predictions, classes), strict=True))


def write_per_class(path: str | os.PathLike[str], per_class: Mapping[str, Mapping[str, float]]) -> None:
    """Write `class,precision,recall,f1,support`, one row per class.

    Args:
        per_class: the metrics of each class by its name, as `compute_metrics` returns them.
    """
    names = ("precision", "recall", "f1", "support")
    rows = ([name, *(values[key] for key in names)] for name, values in per_class.items())
    write_table(path, ["class", *names], rows)


def write_predictions(
    path: str | os.PathLike[str],
    labels: "np.ndarray",
    predictions: "np.ndarray",
    probabilities: "np.ndarray",
    classes: Sequence[str],
) -> None:
    """Write `index,label,prediction,probability`, one row per image in the order of the split.

    Args:
        labels, predictions: `[N] int`, class indices; written as names.
        probabilities: `[N] float` of the predictions; written with six decimals.
        classes: class names, in order.
    """
    columns = (_names(labels, classes), _names(predictions, classes), [f"{p:.6f}" for p in probabilities])
    rows = zip(range(len(labels)), *columns, strict=True)
    write_table(path, ["index", "label", "prediction", "probability"], rows)


def _names(indices: "np.ndarray", classes: Sequence[str]) -> list[str]:
    return [classes[int(index)] for index in indices]


def write_table(path: str | os.PathLike[str], header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a header and rows as a CSV file."""
    with atomic_write(Path(path)) as tmp, tmp.open("w", encoding="utf-8", newline="") as file:
        write_rows(file, [header, *rows])


PAGE_ROWS = 100  # rows laid out at once; the first page sets the column widths
MIN_FILE_WIDTH = 12
PADDING = 3
DECIMALS = 6


def with_progress(predictions: "Iterable[Prediction]", total: int | None, min_total: int) -> "Iterator[Prediction]":
    """Yield the predictions and show a progress bar if there are more than `min_total` or an unknown number."""
    if total is not None and total <= min_total:
        yield from predictions
        return
    # On standard error if the predictions themselves are piped.
    console = stdout_console if stdout_console.is_terminal else stderr_console
    with progress_bar("Images", total, transient=True, console=console) as advance:
        for prediction in predictions:
            yield prediction
            advance(1)


def print_table(predictions: "Iterable[Prediction]", top: int) -> int:
    """Print a table of files with their `top` most probable classes, log the errors, and return their number."""
    num_errors, widths = 0, list[int]()
    remaining = iter(predictions)
    while page := list(islice(remaining, PAGE_ROWS)):
        rows = [_row(prediction) for prediction in page if not prediction.error]
        if rows:
            header = _header(top)
            is_first, widths = not widths, widths or _widths([header, *rows], more=len(page) == PAGE_ROWS)
            stdout_console.print(Padding(_as_table(header, rows, widths, is_first), (0, 0, 0, 1)), soft_wrap=False)
        for prediction in page:
            num_errors += _log_error(prediction)
    return num_errors


def print_json(predictions: "Iterable[Prediction]") -> int:
    """Print a line of JSON for each file, log the errors, and return their number."""
    num_errors = 0
    for prediction in predictions:
        print(escape_control_json(json.dumps(prediction.as_json(), ensure_ascii=False)))
        num_errors += _log_error(prediction)
    return num_errors


def write_csv(predictions: "Iterable[Prediction]", path: Path, top: int) -> int:
    """Write `file,class,probability,class_2,...,error` for each file, log the errors, and return their number."""
    num_errors = 0
    suffixes = ["", *(f"_{rank}" for rank in range(2, top + 1))]
    names = [name for suffix in suffixes for name in (f"class{suffix}", f"probability{suffix}")]
    with atomic_write(path) as tmp, tmp.open("w", encoding="utf-8", newline="") as file:
        write_rows(file, [["file", *names, "error"]])
        for prediction in predictions:
            cells = [cell for name, value in prediction.ranking for cell in (name, f"{value:.{DECIMALS}f}")]
            write_rows(file, [[prediction.file, *cells, *[""] * (len(names) - len(cells)), prediction.error]])
            num_errors += _log_error(prediction)
    return num_errors


def _log_error(prediction: "Prediction") -> int:
    if not prediction.error:
        return 0
    log.error(f"{escape_control(prediction.file)}: {prediction.error}")
    return 1


def _header(top: int) -> list[str]:
    return ["file", "class", "probability", "runner-up", "third", *(f"{n}th" for n in range(4, top + 1))][: top + 2]


def _row(prediction: "Prediction") -> list[str]:
    (name, value), *others = prediction.ranking
    return [
        escape_control(prediction.file),
        escape_control(name),
        percent(value, 1).rjust(len(percent(1, 1))),
        *(f"{escape_control(other)} {percent(value, 1)}" for other, value in others),
    ]


def _widths(rows: list[list[str]], more: bool) -> list[int]:
    """Return the width of each column: its widest cell, or for files the space left if `more` rows follow."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    left = stdout_console.width - sum(width + PADDING for width in widths[1:]) - PADDING
    return [max(MIN_FILE_WIDTH, left if more else min(widths[0], left)), *widths[1:]]


def _as_table(header: list[str], rows: Iterable[list[str]], widths: list[int], is_first: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_header=is_first, show_edge=False, pad_edge=False)
    for name, width in zip(header, widths, strict=True):
        style = "bold" if name == "class" else None
        table.add_column(name, width=width, overflow="fold", style=style)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def write_skipped(skipped: Iterable[tuple[str, str]], path: Path) -> None:
    """Write `path,reason` for each file that `preprocess` skipped; without any, only the header."""
    write_table(path, ["path", "reason"], skipped)


RETRAIN_HINT = "run `dvc repro -f train` to write it again (without training if it is still in .cache/)"


def read_history(text: str, name: str) -> "pd.DataFrame":
    """Parse history.csv, one row per epoch.

    Args:
        text: content of the file.
        name: path of the file, for the error message.

    Raises:
        UserError: a row has too many cells, a cell is not a number, a column is missing, or there are no epochs.
    """
    import pandas as pd  # here, because `predict` and `preprocess` need this module without it

    try:
        table = pd.read_csv(StringIO(text))
        numbers = table.astype(float)
        if not isinstance(table.index, pd.RangeIndex):  # pandas uses extra cells in all rows as the index
            raise ValueError("rows have more cells than there are columns")
    except (ValueError, pd.errors.ParserError) as error:
        reason = one_line(error)[:100]
        raise UserError(f"{name} is damaged ({reason}): {RETRAIN_HINT}.") from None
    required = {"epoch", "train/loss", "train/accuracy"}
    missing = sorted(required - set(numbers))
    if missing or not len(numbers):
        reason = f"it has no column {missing[0]}" if missing else "it has no epochs"
        raise UserError(f"{name} is damaged ({reason}): {RETRAIN_HINT}.")
    return table


# East Asian spreadsheets treat the full-width forms as the same characters.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


_GUARDED = re.compile(r"'+[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?inf|nan")


# Characters to escape, and backslashes that would be read back as an escape.
_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]|\\(?=u[0-9a-f]{4})"
)


_ESCAPED = re.compile(r"\\u([0-9a-f]{4})")


def safe_cell(cell: object) -> object:
    """Escape unsafe characters of a text cell, and prefix it if it would be a formula; numbers are returned as is."""
    if not isinstance(cell, str) or _NUMBER.fullmatch(cell):
        return cell
    text = f"'{cell}" if _FORMULA.match(cell) else cell
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def plain_cell(text: str) -> str:
    """Undo `safe_cell`."""
    cell = _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text)
    return cell[1:] if _GUARDED.match(cell) else cell


def write_rows(file: TextIO, rows: Iterable[Sequence[object]]) -> None:
    """Write rows to a file opened with `newline=""`; the same bytes on every system."""
    writer = csv.writer(file, lineterminator="\n")
    for row in rows:
        writer.writerow([safe_cell(cell) for cell in row])


def read_rows(path: Path) -> Iterator[list[str]]:
    """Yield the rows of a file written by `write_rows`, the header first."""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file):
            yield [plain_cell(text) for text in row]
