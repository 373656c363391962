"""What each recipe came to, over its seeds: a table for the terminal and for the README, in two languages."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Protocol

from rich import box
from rich.table import Table
from rich.text import Text

from cifar_pipeline.console import Refusal, duration, terminal
from cifar_pipeline.files import whole_file
from cifar_pipeline.visible import visible

# What stands around the table in a page, so that it can be replaced.
BEGIN, END = "<!-- made by `make results` -->", "<!-- end of what `make results` made -->"
HEADINGS = {
    "en": ("recipe", "test accuracy, mean ± standard deviation (seeds)", "target", "time", "on", "commit"),
    "zh": ("方案", "测试准确率，均值 ± 标准差（种子）", "目标", "时间", "硬件", "提交"),
}
REACHED = {"en": ("reached", "**missed**"), "zh": ("达到", "**未达到**")}
NO_VAL = {"en": "trained on train and validation part", "zh": "用训练和验证两部分训练"}


class Training(Protocol):
    """A training that was measured on the test part."""

    @property
    def seed(self) -> int: ...
    @property
    def accuracy(self) -> float: ...
    @property
    def seconds(self) -> float: ...
    @property
    def hardware(self) -> str: ...
    @property
    def commit(self) -> str: ...


@dataclass(frozen=True)
class Result:
    """A recipe's trainings on one machine. `target` is the accuracy that it was made for, None where none was named."""

    command: str
    has_val: bool
    target: float | None
    trainings: Sequence[Training]

    @property
    def accuracy(self) -> float:
        """The mean over the seeds."""
        return mean(training.accuracy for training in self.trainings)

    def cells(self, language: str) -> list[str]:
        """A row, in the order of HEADINGS."""
        ordered = sorted(self.trainings, key=lambda training: training.seed)
        values = [100 * training.accuracy for training in ordered]
        spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
        seeds = ", ".join(f"{training.seed}: {value:.2f}" for training, value in zip(ordered, values, strict=True))
        target = ""
        if self.target is not None:
            target = f">= {self.target:g} %: {REACHED[language][round(mean(values), 2) < self.target]}"
        return [
            f"`{self.command}`" + ("" if self.has_val else f", {NO_VAL[language]}"),
            f"{mean(values):.2f}{spread} % ({seeds})",
            target,
            duration(mean(training.seconds for training in ordered)),
            ordered[-1].hardware,
            ", ".join(dict.fromkeys(training.commit for training in ordered if training.commit)),
        ]


def print_results(results: Iterable[Result]) -> None:
    """Print a row for each recipe and machine."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in HEADINGS["en"]:
        table.add_column(heading, overflow="fold")
    for result in results:
        table.add_row(*(Text(visible(re.sub(r"[`*]", "", cell))) for cell in result.cells("en")))
    terminal.print(table, soft_wrap=False)


def write_results(results: Iterable[Result], page: Path, language: str) -> int:
    """Replace the table between the marks of a page; returns how many of its rows are from before.

    A recipe's row on a machine that none of `results` is about stays: it was measured elsewhere.

    Raises:
        Refusal: the page has no such marks.
    """
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    old, end, after = rest.partition(END)
    if not begin or not end:
        raise Refusal(f"{page} has no place for the table: put the lines {BEGIN} and {END} where it belongs.")
    new = [result.cells(language) for result in results]
    kept = [row for row in _rows_of(old) if _about(row) not in map(_about, new)]
    rows = sorted([*new, *kept], key=lambda row: float(row[1].split()[0]))
    lines = [HEADINGS[language], ["---"] * len(HEADINGS[language]), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    with whole_file(page) as part:
        part.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")
    return len(kept)


def _rows_of(table: str) -> Iterator[list[str]]:
    for line in table.splitlines():
        cells = line.strip("| ").split(" | ")
        if len(cells) == len(HEADINGS["en"]) and re.match(r"\d", cells[1]):
            yield cells


def _about(row: list[str]) -> tuple[str, str]:
    """The recipe's command and the machine."""
    return row[0].partition("`,")[0].strip("`"), row[4]
