"""The comparison of a sweep's trials, as a person gets it: printed, drawn, and written into the sweep's folder.

compare.html: a sweep's trials beside each other, the best one, and how to make it the pipeline's choice.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from cifar_pipeline.reporting.html_report import figure_uri, render
from cifar_pipeline.reporting.metrics import display_name
from cifar_pipeline.reporting.style import save
from cifar_pipeline.reporting.sweep_comparison import (
    FAILED_STATUSES,
    Comparison,
    TrialGroup,
    as_table,
    cell_text,
    failed_trials,
    format_mean_std,
    groups,
    numeric_columns,
    table_rows,
    to_csv,
    to_markdown,
    winner,
)
from cifar_pipeline.reporting.sweep_plots import curves, dots, heat_map, is_grid, line, numeric_column
from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.console import info, stdout_console


@dataclass(frozen=True)
class PageRow:
    """A row of the table: what its cells say, whether it is the best, whether some of its trials failed."""

    cells: list[str]
    best: bool
    broken: bool


def sweep_page(comparison: Comparison, drawings: dict[str, Figure], command: str) -> str:
    """The page as text.

    Args:
        drawings: the figures, each under its heading.
        command: how to run the best trial in the pipeline; empty if no trial has finished.
    """
    header, rows = table_rows(comparison)
    found, order = groups(comparison), _order(len(header))
    return render(
        "compare.html",
        title=comparison.title,
        trials=len(comparison.trials),
        metric=display_name(comparison.metric),
        over_seeds=comparison.averages_seeds,
        best=_best(comparison, found),
        command=command,
        header=[header[place] for place in order],
        right=[place for place, before in enumerate(order) if before in numeric_columns(header)],
        rows=[
            PageRow(
                [row[before] for before in order],
                place == 0 and _known(group, comparison.metric),
                group.count(*FAILED_STATUSES) > 0,
            )
            for place, (group, row) in enumerate(zip(found, rows, strict=True))
        ],
        drawings=[
            {"heading": heading, "source": figure_uri(figure), "words": f"{heading}. {_describe(comparison, found)}"}
            for heading, figure in drawings.items()
        ],
        failed=failed_trials(comparison),
    )


def _order(columns: int) -> list[int]:
    """The table's columns with the metric after the rank: a narrow screen shows the first ones only."""
    metric = columns - 4
    return [0, metric, *(place for place in range(1, columns) if place != metric)]


def _best(comparison: Comparison, found: list[TrialGroup]) -> dict[str, str] | None:
    if winner(comparison) is None:
        return None
    return {
        "name": _named(comparison, found[0]),
        "value": format_mean_std(found[0], comparison.metric, comparison.averages_seeds),
    }


def _describe(comparison: Comparison, found: list[TrialGroup]) -> str:
    """What the figures show: the best and the last of those that have a value."""
    known = [group for group in found if _known(group, comparison.metric)]
    if not known:
        return "No trial has a value."
    ends = [known[0], *known[-1:]] if len(known) > 1 else known
    said = [
        f"{_named(comparison, group)} with {format_mean_std(group, comparison.metric, comparison.averages_seeds)}"
        for group in ends
    ]
    return f"{display_name(comparison.metric).capitalize()} from the best, {said[0]}" + (
        f", to the last, {said[1]}." if len(said) > 1 else "."
    )


def _named(comparison: Comparison, group: TrialGroup) -> str:
    values = zip(comparison.choices, group.values, strict=True)
    return ", ".join(f"{choice}={value}" for choice, value in values) or cell_text(group.members[0].get("name"))


def _known(group: TrialGroup, metric: str) -> bool:
    return not math.isnan(group.mean(metric))


def figure(comparison: Comparison) -> Figure:
    """Draw the trials as what is swept asks for, the seed aside.

    Two columns that fill a grid make a heat map, a column of numbers makes a line (one for each choice where
    another column leaves the grid too empty), all else a row of dots per combination.
    """
    if len(comparison.choices) == 2 and is_grid(comparison):
        return heat_map(comparison)
    if numeric_column(comparison) is not None:
        return line(comparison)
    return dots(comparison)


def write(comparison: Comparison, folder: Path, command: str = "") -> list[Path]:
    """Write comparison.csv, comparison.md, comparison.png, curves.png and compare.html into `folder`.

    `command` is how to run the best trial in the pipeline; the page contains it. The same comparison gives the same bytes.
    Returns the files' paths.
    """
    drawings = {"comparison.png": figure(comparison), "curves.png": curves(comparison)}
    headings = {"Trials": drawings["comparison.png"], "Epoch by epoch": drawings["curves.png"]}
    texts = {
        "comparison.csv": to_csv(comparison),
        "comparison.md": to_markdown(comparison),
        "compare.html": sweep_page(comparison, headings, command),
    }
    for name, content in texts.items():
        with atomic_write(folder / name) as part:
            part.write_text(content, encoding="utf-8", newline="\n")
    for name, drawn in drawings.items():
        save(drawn, folder / name)
    return [folder / name for name in (*texts, *drawings)]


def print_comparison(comparison: Comparison) -> None:
    """Print the table, then a sentence for each trial that failed."""
    # The console lets lines run on for whoever pipes them; a table needs its width kept.
    stdout_console.print(as_table(comparison), soft_wrap=False)
    for sentence in failed_trials(comparison):
        info(sentence)
