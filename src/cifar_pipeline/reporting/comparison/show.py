"""The comparison of a sweep's points, as a person gets it: printed, drawn, and written into the sweep's folder."""

from pathlib import Path

from matplotlib.figure import Figure

from cifar_pipeline.console import say, terminal
from cifar_pipeline.files import whole_file
from cifar_pipeline.reporting.comparison.curves import curves
from cifar_pipeline.reporting.comparison.dots import dots
from cifar_pipeline.reporting.comparison.groups import Comparison
from cifar_pipeline.reporting.comparison.heat_map import heat_map, is_grid
from cifar_pipeline.reporting.comparison.line import line, numeric_column
from cifar_pipeline.reporting.comparison.tables import as_table, failed_points, to_csv, to_markdown
from cifar_pipeline.reporting.pages.compare import compare_page
from cifar_pipeline.reporting.style import save


def figure(comparison: Comparison) -> Figure:
    """Draw the points as what is swept asks for, the seed aside.

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

    `command` makes the best point the pipeline's choice: the page names it. The same comparison gives the same bytes.
    Returns the files' paths.
    """
    drawings = {"comparison.png": figure(comparison), "curves.png": curves(comparison)}
    headings = {"Points": drawings["comparison.png"], "Epoch by epoch": drawings["curves.png"]}
    texts = {
        "comparison.csv": to_csv(comparison),
        "comparison.md": to_markdown(comparison),
        "compare.html": compare_page(comparison, headings, command),
    }
    for name, content in texts.items():
        with whole_file(folder / name) as part:
            part.write_text(content, encoding="utf-8", newline="\n")
    for name, drawn in drawings.items():
        save(drawn, folder / name)
    return [folder / name for name in (*texts, *drawings)]


def print_comparison(comparison: Comparison) -> None:
    """Print the table, then a sentence for each point that failed."""
    # The console lets lines run on for whoever pipes them; a table needs its width kept.
    terminal.print(as_table(comparison), soft_wrap=False)
    for sentence in failed_points(comparison):
        say(sentence)
