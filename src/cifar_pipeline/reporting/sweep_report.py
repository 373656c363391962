"""Print a sweep's comparison, and write it into the sweep's folder as figures, tables and the page compare.html."""

import math
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from cifar_pipeline.reporting.html import figure_uri, render
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
    group_trials,
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
    """A row of the page's table."""

    cells: list[str]
    is_best: bool
    has_failures: bool


def sweep_page(comparison: Comparison, figures: dict[str, Figure], command: str) -> str:
    """Render the page compare.html.

    Args:
        figures: by heading.
        command: runs the best trial in the pipeline; empty while no trial has finished.
    """
    header, rows = table_rows(comparison)
    groups, order = group_trials(comparison), _metric_first(len(header))
    numeric = numeric_columns(header)
    description = _describe(comparison, groups)
    return render(
        "compare.html",
        title=comparison.title,
        trials=len(comparison.trials),
        metric=display_name(comparison.metric),
        averages_seeds=comparison.averages_seeds,
        best=_best(comparison, groups),
        command=command,
        header=[header[column] for column in order],
        right=[position for position, column in enumerate(order) if column in numeric],
        rows=[
            PageRow(
                [row[column] for column in order],
                is_best=index == 0 and _has_value(group, comparison.metric),
                has_failures=group.count(*FAILED_STATUSES) > 0,
            )
            for index, (group, row) in enumerate(zip(groups, rows, strict=True))
        ],
        figures=[
            {"source": figure_uri(figure), "alt": f"{heading}. {description}"} for heading, figure in figures.items()
        ],
        failed=failed_trials(comparison),
    )


def _metric_first(columns: int) -> list[int]:
    """Order the table's columns with the metric after the rank, because narrow screens show only the first ones."""
    metric = columns - 4
    return [0, metric, *(column for column in range(1, columns) if column != metric)]


def _best(comparison: Comparison, groups: list[TrialGroup]) -> dict[str, str] | None:
    if winner(comparison) is None:
        return None
    return {
        "name": _group_name(comparison, groups[0]),
        "value": format_mean_std(groups[0], comparison.metric, comparison.averages_seeds),
    }


def _describe(comparison: Comparison, groups: list[TrialGroup]) -> str:
    """Describe the figures as text: the best and the last group with a value."""
    known = [group for group in groups if _has_value(group, comparison.metric)]
    if not known:
        return "No trial has a value."
    first, *last = [
        f"{_group_name(comparison, group)} with {format_mean_std(group, comparison.metric, comparison.averages_seeds)}"
        for group in (known if len(known) == 1 else (known[0], known[-1]))
    ]
    metric = display_name(comparison.metric).capitalize()
    return f"{metric} from the best, {first}, to the last, {last[0]}." if last else f"{metric} of the best, {first}."


def _group_name(comparison: Comparison, group: TrialGroup) -> str:
    values = zip(comparison.choices, group.values, strict=True)
    return ", ".join(f"{choice}={value}" for choice, value in values) or cell_text(group.members[0].get("name"))


def _has_value(group: TrialGroup, metric: str) -> bool:
    return not math.isnan(group.mean(metric))


def figure(comparison: Comparison) -> Figure:
    """Draw the trials as a heat map, lines or a dot plot, depending on the swept columns other than the seed.

    Heat map: two columns that fill a grid. Lines: one column of numbers, or one of two if the grid is too sparse, with
    a line for each value of the other. Dot plot: everything else.
    """
    if len(comparison.choices) == 2 and is_grid(comparison):
        return heat_map(comparison)
    if numeric_column(comparison) is not None:
        return line(comparison)
    return dots(comparison)


def write(comparison: Comparison, folder: Path, command: str = "") -> list[Path]:
    """Write comparison.csv, comparison.md, comparison.png, curves.png and compare.html into `folder`.

    The same comparison gives the same bytes.

    Args:
        command: runs the best trial in the pipeline; shown on the page.

    Returns:
        Paths of the files.
    """
    figures = {"comparison.png": figure(comparison), "curves.png": curves(comparison)}
    headings = {"Trials": figures["comparison.png"], "Epoch by epoch": figures["curves.png"]}
    texts = {
        "comparison.csv": to_csv(comparison),
        "comparison.md": to_markdown(comparison),
        "compare.html": sweep_page(comparison, headings, command),
    }
    for name, content in texts.items():
        with atomic_write(folder / name) as tmp:
            tmp.write_text(content, encoding="utf-8", newline="\n")
    for name, drawn in figures.items():
        save(drawn, folder / name)
    return [folder / name for name in (*texts, *figures)]


def print_comparison(comparison: Comparison) -> None:
    """Print the table, then a sentence for each failed trial."""
    # The console does not wrap lines in pipes, but the table's columns need its width.
    stdout_console.print(as_table(comparison), soft_wrap=False)
    for sentence in failed_trials(comparison):
        info(sentence)
