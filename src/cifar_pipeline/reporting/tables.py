"""Predictions as tables: for DVC's confusion plot and for whoever wants to look at single images.

Write CSV that is safe in a spreadsheet and on a terminal, and read it back as it was.

A cell that begins with `=`, `+`, `-`, `@`, a tab or the end of a line would be a formula: it gets a `'` before it, as
OWASP advises (owasp.org/www-community/attacks/CSV_Injection). Numbers stay numbers. Control characters and bytes of
file names that are no UTF-8 are written as `\u001b` and `\udcff`.

What images show, for a person and for programs: a table, JSON or CSV, written as the answers come.

Each way takes predictions one by one, so that their number is no matter, complains about each file that shows nothing,
and returns how many those were.

The table of the files that `preprocess` did not take.

The table of epochs that a training leaves, read back.
"""

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Protocol, TextIO

import numpy as np
import pandas as pd
from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.console import log_error, progress_bar, stderr_console, stdout_console
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import escape_control, escape_control_json

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


def write_confusion(
    path: str | os.PathLike[str], labels: np.ndarray, predictions: np.ndarray, classes: Sequence[str]
) -> None:
    """Write `actual,predicted`, class names, a row per image, as DVC's template `confusion` counts them.

    A name that begins with `=`, `+`, `-` or `@` has a `'` before it, in DVC's plot as well.

    In dvc.yaml: `plots: [{reports/confusion.csv: {template: confusion, x: predicted, y: actual}}]`.

    Args:
        labels, predictions: `[N] int`, numbers of classes.
        classes: their names, in order.
    """
    _write(path, ["actual", "predicted"], zip(_names(labels, classes), _names(predictions, classes), strict=True))


def write_predictions(
    path: str | os.PathLike[str],
    labels: np.ndarray,
    predictions: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
) -> None:
    """Write `index,label,prediction,probability`, a row per image in the part's order.

    Args:
        labels, predictions: `[N] int`, numbers of classes; written as names.
        probabilities: `[N] float` of the predictions; written with six decimals.
        classes: their names, in order.
    """
    columns = (_names(labels, classes), _names(predictions, classes), [f"{p:.6f}" for p in probabilities])
    rows = zip(range(len(labels)), *columns, strict=True)
    _write(path, ["index", "label", "prediction", "probability"], rows)


def _names(numbers: np.ndarray, classes: Sequence[str]) -> list[str]:
    return [classes[int(number)] for number in numbers]


def _write(path: str | os.PathLike[str], header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    # The same bytes on every system: UTF-8 and a bare newline.
    with atomic_write(Path(path)) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        write_rows(file, [header, *rows])


PAGE = 100  # rows that are laid out at once; the first page says how wide the columns of all are
MIN_FILE_WIDTH = 12
PADDING = 3
DECIMALS = 6


class PredictionLike(Protocol):
    """A file with classes and their probabilities, the likeliest first; or with why it shows nothing."""

    @property
    def file(self) -> str: ...
    @property
    def ranking(self) -> Sequence[tuple[str, float]]: ...
    @property
    def error(self) -> str: ...
    def as_json(self) -> dict[str, object]: ...


def with_progress(predictions: Iterable[PredictionLike], total: int | None, few: int) -> Iterator[PredictionLike]:
    """Pass the predictions on and show how far they have come, where there are more than a `few` or nobody knows."""
    if total is not None and total <= few:
        yield from predictions
        return
    # Where the answers themselves go to no terminal, they stay free of it.
    console = stdout_console if stdout_console.is_terminal else stderr_console
    with progress_bar("Images", total, transient=True, console=console) as advance:
        for prediction in predictions:
            yield prediction
            advance(1)


def print_table(predictions: Iterable[PredictionLike], top: int) -> int:
    """Print a table of files with their likeliest class and its `top` - 1 runners-up."""
    bad, widths = 0, list[int]()
    waiting = iter(predictions)
    while page := list(islice(waiting, PAGE)):
        rows = [_row(prediction) for prediction in page if not prediction.error]
        if rows:
            header = _header(top)
            first, widths = not widths, widths or _widths([header, *rows], more=len(page) == PAGE)
            stdout_console.print(Padding(_as_table(header, rows, widths, first), (0, 0, 0, 1)), soft_wrap=False)
        for prediction in page:
            bad += _log_error(prediction)
    return bad


def print_json(predictions: Iterable[PredictionLike]) -> int:
    """Print a line of JSON for each file."""
    bad = 0
    for prediction in predictions:
        print(escape_control_json(json.dumps(prediction.as_json(), ensure_ascii=False)))
        bad += _log_error(prediction)
    return bad


def write_csv(predictions: Iterable[PredictionLike], path: Path, top: int) -> int:
    """Write a row for each file: `file,class,probability,class_2,probability_2,...,error`."""
    bad = 0
    places = ["", *(f"_{place}" for place in range(2, top + 1))]
    names = [name for place in places for name in (f"class{place}", f"probability{place}")]
    with atomic_write(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        write_rows(file, [["file", *names, "error"]])
        for prediction in predictions:
            cells = [cell for name, value in prediction.ranking for cell in (name, f"{value:.{DECIMALS}f}")]
            write_rows(file, [[prediction.file, *cells, *[""] * (len(names) - len(cells)), prediction.error]])
            bad += _log_error(prediction)
    return bad


def _log_error(prediction: PredictionLike) -> int:
    if not prediction.error:
        return 0
    log_error(f"{escape_control(prediction.file)}: {prediction.error}")
    return 1


def _header(top: int) -> list[str]:
    return ["file", "class", "probability", "runner-up", "third", *(f"{n}th" for n in range(4, top + 1))][: top + 2]


def _row(prediction: PredictionLike) -> list[str]:
    (name, value), *others = prediction.ranking
    return [
        escape_control(prediction.file),
        escape_control(name),
        _percent(value).rjust(len(_percent(1))),
        *(f"{escape_control(other)} {_percent(value)}" for other, value in others),
    ]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _widths(rows: list[list[str]], more: bool) -> list[int]:
    """Each column as wide as its widest cell; the files' as wide as fits where `more` rows may have longer ones."""
    widest = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    left = stdout_console.width - sum(width + PADDING for width in widest[1:]) - PADDING
    return [max(MIN_FILE_WIDTH, left if more else min(widest[0], left)), *widest[1:]]


def _as_table(header: list[str], rows: Iterable[list[str]], widths: list[int], first: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_header=first, show_edge=False, pad_edge=False)
    for name, width in zip(header, widths, strict=True):
        style = "bold" if name == "class" else None
        table.add_column(name, width=width, overflow="fold", style=style)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def write_skipped(skipped: Iterable[tuple[str, str]], path: Path) -> None:
    """Write `path,reason`, a row for each file that was not taken; without any, the header alone."""
    with atomic_write(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        write_rows(file, [("path", "reason"), *skipped])


RETRAIN_HINT = "`dvc repro -f train` writes it again, without training where .cache/ still has it"


def read_history(text: str, name: str) -> pd.DataFrame:
    """Read the rows of history.csv, an epoch each, from its text; `name` is for the sentence.

    Raises Refusal where a row has too many cells, a cell is no number, or there is no epoch.
    """
    try:
        table = pd.read_csv(StringIO(text))
        numbers = table.astype(float)
        if not isinstance(table.index, pd.RangeIndex):  # pandas takes a surplus cell in each row for the row's name
            raise ValueError("rows have more cells than there are columns")
    except (ValueError, pd.errors.ParserError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{name} is not what a training writes ({reason}): {RETRAIN_HINT}.") from None
    needed = {"epoch", "train/loss", "train/accuracy"}
    missing = sorted(needed - set(numbers))
    if missing or not len(numbers):
        what = f"it has no column {missing[0]}" if missing else "it has no epoch"
        raise UserError(f"{name} is not what a training writes ({what}): {RETRAIN_HINT}.")
    return table
