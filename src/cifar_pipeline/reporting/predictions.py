"""What pictures show, for a person and for programs: a table, JSON or CSV, written as the answers come.

Each way takes predictions one by one, so that their number is no matter, complains about each file that shows nothing,
and returns how many those were.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cifar_pipeline.console import complain, errors, progress, terminal
from cifar_pipeline.files import whole_file
from cifar_pipeline.reporting.csv_files import write_rows
from cifar_pipeline.visible import visible, visible_json

PAGE = 100  # rows that are laid out at once; the first page says how wide the columns of all are
NARROWEST = 12
PADDING = 3
DECIMALS = 6


class Predicted(Protocol):
    """A file with classes and their probabilities, the likeliest first; or with why it shows nothing."""

    @property
    def file(self) -> str: ...
    @property
    def ranking(self) -> Sequence[tuple[str, float]]: ...
    @property
    def error(self) -> str: ...
    def as_json(self) -> dict[str, object]: ...


def with_progress(predictions: Iterable[Predicted], total: int | None, few: int) -> Iterator[Predicted]:
    """Pass the predictions on and show how far they have come, where there are more than a `few` or nobody knows."""
    if total is not None and total <= few:
        yield from predictions
        return
    # Where the answers themselves go to no terminal, they stay free of it.
    console = terminal if terminal.is_terminal else errors
    with progress("Pictures", total, transient=True, console=console) as advance:
        for prediction in predictions:
            yield prediction
            advance(1)


def print_table(predictions: Iterable[Predicted], top: int) -> int:
    """Print a table of files with their likeliest class and its `top` - 1 runners-up."""
    bad, widths = 0, list[int]()
    waiting = iter(predictions)
    while page := list(islice(waiting, PAGE)):
        rows = [_row(prediction) for prediction in page if not prediction.error]
        if rows:
            header = _header(top)
            first, widths = not widths, widths or _widths([header, *rows], more=len(page) == PAGE)
            terminal.print(Padding(_as_table(header, rows, widths, first), (0, 0, 0, 1)), soft_wrap=False)
        for prediction in page:
            bad += _complain(prediction)
    return bad


def print_json(predictions: Iterable[Predicted]) -> int:
    """Print a line of JSON for each file."""
    bad = 0
    for prediction in predictions:
        print(visible_json(json.dumps(prediction.as_json(), ensure_ascii=False)))
        bad += _complain(prediction)
    return bad


def write_csv(predictions: Iterable[Predicted], path: Path, top: int) -> int:
    """Write a row for each file: `file,class,probability,class_2,probability_2,...,error`."""
    bad = 0
    places = ["", *(f"_{place}" for place in range(2, top + 1))]
    names = [name for place in places for name in (f"class{place}", f"probability{place}")]
    with whole_file(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        write_rows(file, [["file", *names, "error"]])
        for prediction in predictions:
            cells = [cell for name, value in prediction.ranking for cell in (name, f"{value:.{DECIMALS}f}")]
            write_rows(file, [[prediction.file, *cells, *[""] * (len(names) - len(cells)), prediction.error]])
            bad += _complain(prediction)
    return bad


def _complain(prediction: Predicted) -> int:
    if not prediction.error:
        return 0
    complain(f"{visible(prediction.file)}: {prediction.error}")
    return 1


def _header(top: int) -> list[str]:
    return ["file", "class", "probability", "runner-up", "third", *(f"{n}th" for n in range(4, top + 1))][: top + 2]


def _row(prediction: Predicted) -> list[str]:
    (name, value), *others = prediction.ranking
    return [
        visible(prediction.file),
        visible(name),
        _percent(value).rjust(len(_percent(1))),
        *(f"{visible(other)} {_percent(value)}" for other, value in others),
    ]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _widths(rows: list[list[str]], more: bool) -> list[int]:
    """Each column as wide as its widest cell; the files' as wide as fits where `more` rows may have longer ones."""
    widest = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    left = terminal.width - sum(width + PADDING for width in widest[1:]) - PADDING
    return [max(NARROWEST, left if more else min(widest[0], left)), *widest[1:]]


def _as_table(header: list[str], rows: Iterable[list[str]], widths: list[int], first: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_header=first, show_edge=False, pad_edge=False)
    for name, width in zip(header, widths, strict=True):
        style = "bold" if name == "class" else None
        table.add_column(name, width=width, overflow="fold", style=style)
    for row in rows:
        table.add_row(*map(Text, row))
    return table
