"""The short table at the end of `make`, from the files that the stages left."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from rich import box
from rich.table import Table
from rich.text import Text

from cifar_pipeline.console import Refusal, duration, terminal
from cifar_pipeline.documents import json_of
from cifar_pipeline.git import is_in_repository
from cifar_pipeline.visible import visible

STAGES = ("configure", "download", "preprocess", "train", "evaluate")


def show_summary(root: Path) -> None:
    """Print the table for the project in `root`, and below it how to get the real data where a fallback was used.

    Raises:
        Refusal: there are no results yet, or they can't be read.
    """
    metrics = _read(root / "reports" / "metrics.json")
    if metrics is None:
        raise Refusal("There is no reports/metrics.json yet: run `make`, which trains and evaluates, then look again.")
    try:
        rows = summary_rows(root, metrics)
        lines = fallback_lines(root, metrics["dataset"])
    except (KeyError, TypeError) as error:
        raise Refusal(f"reports/metrics.json lacks {error}: run `make`, which writes it anew.") from error
    # The console lets lines run on for whoever pipes them; a table needs its width kept.
    terminal.print(as_table(rows), soft_wrap=False)
    for line in lines:
        terminal.print(Text(visible(line)), style="bold yellow")


def summary_rows(root: Path, metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List (what, its value) in the order shown."""
    dataset, test = metrics["dataset"], metrics["test"]
    sizes = ", ".join(f"{part} {size:,}" for part, size in dataset["sizes"].items())
    timing = _read(root / "reports" / "timing.json") or {}
    figures, page = sorted((root / "reports").glob("*.png")), root / "reports" / "report.html"
    return [
        ("data set", f"{dataset['title']}{' (fallback)' if dataset['fallback'] else ''}"),
        ("source", str(dataset["source"])),
        ("images", sizes + skipped_words(dataset)),
        ("test accuracy", f"{100 * test['accuracy']:.2f} % (top 3: {100 * test['top3_accuracy']:.2f} %)"),
        ("parameters", f"{metrics['parameters']:,}"),
        ("device", device_words(timing.get("train", {}))),
        ("time", "\n".join(f"{stage:<11}{_time(root, stage, timing)}" for stage in STAGES)),
        ("figures", "\n".join(str(path.relative_to(root)) for path in figures) or "none"),
        ("report", str(page.relative_to(root)) if page.is_file() else "none"),
        ("MLflow page", mlflow_page(os.environ.get("MLFLOW_TRACKING_URI", ""))),
    ]


def skipped_words(dataset: Mapping[str, Any]) -> str:
    """Say how many files were skipped, behind the number of images; nothing where there are none."""
    skipped = int(dataset.get("skipped", 0))
    return f"; {skipped:,} {'file' if skipped == 1 else 'files'} skipped (reports/skipped.csv)" if skipped else ""


def as_table(rows: list[tuple[str, str]]) -> Table:
    """Lay the rows out; long values are folded, never cut."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(visible(value, keep="\n")))
    return table


def fallback_lines(root: Path, dataset: Mapping[str, Any]) -> list[str]:
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


def device_words(train: Mapping[str, Any]) -> str:
    """Say what was computed on, from a training's timing: `cpu, 2 threads`."""
    device, threads = str(train.get("device", "unknown")), train.get("threads")
    # A device's own words may count them already.
    if not threads or "thread" in device:
        return device
    return f"{device}, {threads} thread{'' if str(threads) == '1' else 's'}"


def mlflow_page(tracking_uri: str) -> str:
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
    return duration(ran["seconds"]) + (f" ({speed:,.0f} images/s)" if speed else "")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json_of(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Refusal(f"{path.name} can't be read ({error}): run `make`, which writes it anew.") from error
    if not isinstance(content, dict):
        raise Refusal(f"{path.name} holds no table of values: run `make`, which writes it anew.")
    return content
