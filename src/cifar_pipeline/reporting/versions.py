"""The registered models as a table."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from rich import box
from rich.table import Table
from rich.text import Text

from cifar_pipeline.console import terminal
from cifar_pipeline.visible import visible


class Version(Protocol):
    """A registered version: NAME/NUMBER, what it is called besides, when it came, and the facts that stand on it."""

    @property
    def address(self) -> str: ...
    @property
    def aliases(self) -> Sequence[str]: ...
    @property
    def date(self) -> datetime: ...
    @property
    def facts(self) -> Mapping[str, str]: ...


def print_versions(rows: Iterable[Version]) -> None:
    """Print a row for each version: its accuracies, data, run and date; those with an alias in colour."""
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title="Accuracy of the registered models",
        title_justify="left", title_style="bold",
    )  # fmt: skip
    for name in ("model", "alias"):
        table.add_column(name, no_wrap=True)
    for name in ("val", "test"):
        table.add_column(name, no_wrap=True, justify="right")
    for name in ("data set", "run", "date"):
        table.add_column(name, overflow="fold")
    for row in rows:
        accuracies = [_percent(row.facts.get(f"{part}/accuracy")) for part in ("val", "test")]
        run = row.facts.get("run", "") + (" (best)" if row.facts.get("checkpoint") == "best" else "")
        dataset, date = row.facts.get("dataset", ""), f"{row.date:%Y-%m-%d %H:%M}"
        cells = [row.address, ", ".join(row.aliases), *accuracies, dataset, run, date]
        table.add_row(*(Text(visible(cell)) for cell in cells), style="bold green" if row.aliases else None)
    terminal.print(table, soft_wrap=False)


def _percent(accuracy: str | None) -> str:
    return f"{float(accuracy):.2%}" if accuracy else "-"
