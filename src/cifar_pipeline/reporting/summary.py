"""The short table at the end of `make`, from the files that the stages left.

The registered models as a table.

What each recipe came to, over its seeds: a table for the terminal and for the README, in two languages.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from rich import box
from rich.table import Table
from rich.text import Text

from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.console import format_duration, stdout_console
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.git import is_in_repository
from cifar_pipeline.utils.safe_io import parse_json
from cifar_pipeline.utils.text import escape_control

STAGES = ("configure", "download", "preprocess", "train", "evaluate")


def show_summary(root: Path) -> None:
    """Print the table for the project in `root`, and below it how to get the real data where a fallback was used.

    Raises:
        Refusal: there are no results yet, or they can't be read.
    """
    metrics = _read(root / "reports" / "metrics.json")
    if metrics is None:
        raise UserError(
            "There is no reports/metrics.json yet: run `make`, which trains and evaluates, then look again."
        )
    try:
        rows = summary_rows(root, metrics)
        lines = fallback_notice(root, metrics["dataset"])
    except (KeyError, TypeError) as error:
        raise UserError(f"reports/metrics.json lacks {error}: run `make`, which writes it anew.") from error
    # The console lets lines run on for whoever pipes them; a table needs its width kept.
    stdout_console.print(as_table(rows), soft_wrap=False)
    for line in lines:
        stdout_console.print(Text(escape_control(line)), style="bold yellow")


def summary_rows(root: Path, metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List (what, its value) in the order shown."""
    dataset, test = metrics["dataset"], metrics["test"]
    sizes = ", ".join(f"{part} {size:,}" for part, size in dataset["sizes"].items())
    timing = _read(root / "reports" / "timing.json") or {}
    figures, page = sorted((root / "reports").glob("*.png")), root / "reports" / "report.html"
    return [
        ("data set", f"{dataset['title']}{' (fallback)' if dataset['fallback'] else ''}"),
        ("source", str(dataset["source"])),
        ("images", sizes + format_skipped(dataset)),
        ("test accuracy", f"{100 * test['accuracy']:.2f} % (top 3: {100 * test['top3_accuracy']:.2f} %)"),
        ("parameters", f"{metrics['parameters']:,}"),
        ("device", format_device(timing.get("train", {}))),
        ("time", "\n".join(f"{stage:<11}{_time(root, stage, timing)}" for stage in STAGES)),
        ("figures", "\n".join(str(path.relative_to(root)) for path in figures) or "none"),
        ("report", str(page.relative_to(root)) if page.is_file() else "none"),
        ("MLflow page", tracking_url(os.environ.get("MLFLOW_TRACKING_URI", ""))),
    ]


def format_skipped(dataset: Mapping[str, Any]) -> str:
    """Say how many files were skipped, behind the number of images; nothing where there are none."""
    skipped = int(dataset.get("skipped", 0))
    return f"; {skipped:,} {'file' if skipped == 1 else 'files'} skipped (reports/skipped.csv)" if skipped else ""


def as_table(rows: list[tuple[str, str]]) -> Table:
    """Lay the rows out; long values are folded, never cut."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(escape_control(value, keep="\n")))
    return table


def fallback_notice(root: Path, dataset: Mapping[str, Any]) -> list[str]:
    """Say that these are not the data that were asked for, and how to get those; nothing for the real data."""
    if not dataset["fallback"]:
        return []
    lines = [
        f"This is the fallback data set, {dataset['title']}: no source of the real data answered.",
        "Once one can be reached: `make cifar10` fetches the real data and trains on it.",
    ]
    if is_in_repository():
        lines.append("To have the published results back: `git restore dvc.lock reports`.")
    return lines


def format_device(train: Mapping[str, Any]) -> str:
    """Say what was computed on, from a training's timing: `cpu, 2 threads`."""
    device, threads = str(train.get("device", "unknown")), train.get("threads")
    # A device's own words may count them already.
    if not threads or "thread" in device:
        return device
    return f"{device}, {threads} thread{'' if str(threads) == '1' else 's'}"


def tracking_url(tracking_uri: str) -> str:
    """Say where the runs are looked at: on the server that runs are sent to, without a password in its address."""
    address = urlsplit(tracking_uri)
    if address.scheme not in ("http", "https"):
        return "make ui"
    return urlunsplit(address._replace(netloc=address.netloc.rpartition("@")[2]))


def _time(root: Path, stage: str, timing: Mapping[str, Any]) -> str:
    ran = _read(root / ".cache" / "stages" / f"{stage}.json")
    if ran is None:
        return "from DVC's cache"
    speed = timing.get(stage, {}).get("images_per_second")
    return format_duration(ran["seconds"]) + (f" ({speed:,.0f} images/s)" if speed else "")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path.name} can't be read ({error}): run `make`, which writes it anew.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path.name} holds no table of values: run `make`, which writes it anew.")
    return content


class RegisteredLike(Protocol):
    """A registered version: NAME/NUMBER, what it is called besides, when it came, and the facts that stand on it."""

    @property
    def address(self) -> str: ...
    @property
    def aliases(self) -> Sequence[str]: ...
    @property
    def date(self) -> datetime: ...
    @property
    def facts(self) -> Mapping[str, str]: ...


def print_versions(rows: Iterable[RegisteredLike]) -> None:
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
        table.add_row(*(Text(escape_control(cell)) for cell in cells), style="bold green" if row.aliases else None)
    stdout_console.print(table, soft_wrap=False)


def _percent(accuracy: str | None) -> str:
    return f"{float(accuracy):.2%}" if accuracy else "-"


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
            format_duration(mean(training.seconds for training in ordered)),
            ordered[-1].hardware,
            ", ".join(dict.fromkeys(training.commit for training in ordered if training.commit)),
        ]


def print_results(results: Iterable[Result]) -> None:
    """Print a row for each recipe and machine."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in HEADINGS["en"]:
        table.add_column(heading, overflow="fold")
    for result in results:
        table.add_row(*(Text(escape_control(re.sub(r"[`*]", "", cell))) for cell in result.cells("en")))
    stdout_console.print(table, soft_wrap=False)


def write_results(results: Iterable[Result], page: Path, language: str) -> int:
    """Replace the table between the marks of a page; returns how many of its rows are from before.

    A recipe's row on a machine that none of `results` is about stays: it was measured elsewhere.

    Raises:
        Refusal: the page has no such marks.
    """
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    old, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{page} has no place for the table: put the lines {BEGIN} and {END} where it belongs.")
    new = [result.cells(language) for result in results]
    kept = [row for row in _table_rows(old) if _describe(row) not in map(_describe, new)]
    rows = sorted([*new, *kept], key=lambda row: float(row[1].split()[0]))
    lines = [HEADINGS[language], ["---"] * len(HEADINGS[language]), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    with atomic_write(page) as part:
        part.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")
    return len(kept)


def _table_rows(table: str) -> Iterator[list[str]]:
    for line in table.splitlines():
        cells = line.strip("| ").split(" | ")
        if len(cells) == len(HEADINGS["en"]) and re.match(r"\d", cells[1]):
            yield cells


def _describe(row: list[str]) -> tuple[str, str]:
    """The recipe's command and the machine."""
    return row[0].partition("`,")[0].strip("`"), row[4]
