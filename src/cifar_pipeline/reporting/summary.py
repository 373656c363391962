"""Print tables for the terminal: the last pipeline run, the registered models, and the measured experiments."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from cifar_pipeline.reporting.metric_names import chosen_metrics, format_metric, unit
from cifar_pipeline.utils.console import format_duration, stdout_console
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.git import RESTORE_COMMAND, is_in_repository
from cifar_pipeline.utils.safe_io import parse_json
from cifar_pipeline.utils.text import escape_control, server_url

if TYPE_CHECKING:
    from cifar_pipeline.config.compose import ExperimentRecipe
    from cifar_pipeline.tracking.registry import RegisteredVersion
    from cifar_pipeline.tracking.runs import EvaluatedRun

STAGES = ("configure", "download", "preprocess", "train", "evaluate")


def show_summary(root: Path) -> None:
    """Print the results of the last pipeline run in `root`, and how to get the real data after a fallback.

    Raises:
        UserError: there are no results yet, or they cannot be read.
    """
    metrics, dataset = (_read(root / "reports" / f"{name}.json") for name in ("metrics", "dataset"))
    if metrics is None or dataset is None:
        raise UserError("There are no results in reports/ yet: run `make`, which trains and evaluates.")
    try:
        rows = summary_rows(root, metrics, dataset)
        notice = fallback_notice(dataset)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"The results in reports/ are incomplete ({error!r}): run `make` to write them again."
        ) from error
    # The console does not wrap lines in pipes, but the table's columns need its width.
    stdout_console.print(as_table(rows), soft_wrap=False)
    for line in notice:
        stdout_console.print(Text(escape_control(line)), style="bold yellow")


def summary_rows(root: Path, metrics: Mapping[str, Any], dataset: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (name, value) of the table's rows."""
    test, training = metrics["test"], _read(root / "models" / "metadata.json") or {}
    sizes = ", ".join(f"{split} {size:,}" for split, size in dataset["sizes"].items())
    recipe, chosen = training.get("recipe", {}), chosen_metrics(test)
    figures, page = sorted((root / "reports").glob("*.png")), root / "reports" / "report.html"
    rows = [
        ("data set", f"{dataset['title']}{' (fallback)' if dataset['fallback'] else ''}"),
        ("source", str(dataset["source"])),
        ("images", sizes + format_skipped(dataset)),
        ("test accuracy", f"{100 * test['accuracy']:.2f} %{_top3(test, training)}"),
        ("test metrics", ", ".join(f"{name} {value}" for name, value in chosen.items())),
        ("monitor", f"{recipe['monitor']} ({recipe['mode']})" if "monitor" in recipe else ""),
        ("stopped early", str(training.get("stopped", ""))),
        ("parameters", f"{training['parameters']:,}" if training else "unknown"),
        ("device", format_device(training.get("timing", {}))),
        ("time", "\n".join(f"{stage:<11}{_time(root, stage, metrics)}" for stage in STAGES)),
        ("figures", "\n".join(str(path.relative_to(root)) for path in figures) or "none"),
        ("report", str(page.relative_to(root)) if page.is_file() else "none"),
        ("MLflow page", server_url(os.environ.get("MLFLOW_TRACKING_URI", "")) or "make ui"),
    ]
    return [(name, value) for name, value in rows if value]


def _top3(test: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """Return the top-3 accuracy in parentheses; empty for up to three classes, where it is always 100 %."""
    if len(training.get("classes", ())) in (1, 2, 3):
        return ""
    return f" (top 3: {100 * test['top3_accuracy']:.2f} %)"


def format_skipped(dataset: Mapping[str, Any]) -> str:
    """Return a note on skipped files to append to the number of images; empty if there are none."""
    skipped = int(dataset.get("skipped", 0))
    return f"; {skipped:,} {'file' if skipped == 1 else 'files'} skipped (reports/skipped.csv)" if skipped else ""


def as_table(rows: list[tuple[str, str]]) -> Table:
    """Format the rows as a table; long values are wrapped, never cut."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(escape_control(value, keep="\n")))
    return table


def fallback_notice(dataset: Mapping[str, Any]) -> list[str]:
    """Return lines on how to get the real data if the data set is the fallback, else none."""
    if not dataset["fallback"]:
        return []
    lines = [
        f"This is the fallback data set, {dataset['title']}: no source of the real data could be reached.",
        "`make cifar10` downloads the real data and trains on it.",
    ]
    if is_in_repository():
        lines.append(f"To restore the published results: `{RESTORE_COMMAND}`.")
    return lines


def format_device(train: Mapping[str, Any]) -> str:
    """Format the device of a training's timing: `cpu, 2 threads`."""
    device, threads = str(train.get("device", "unknown")), train.get("threads")
    # The name of the device may contain the number of threads already.
    if not threads or "thread" in device:
        return device
    return f"{device}, {threads} thread{'' if str(threads) == '1' else 's'}"


def _time(root: Path, stage: str, metrics: Mapping[str, Any]) -> str:
    try:
        seconds = float((_read(root / ".cache" / "stages" / f"{stage}.json") or {})["seconds"])
    except (UserError, KeyError, TypeError, ValueError):
        return "not recorded here (the result came from DVC's cache, or .cache/ was removed)"
    speed = metrics.get(stage, {}).get("images_per_second")
    return format_duration(seconds) + (f" ({speed:,.0f} images/s)" if speed else "")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {path.name} ({error}): run `make` to write it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path.name} is not a JSON object: run `make` to write it again.")
    return content


EXPERIMENT_HEADINGS = ["recipe", "test accuracy, mean ± standard deviation (seeds)", "target", "time", "on", "commit"]


def print_versions(rows: Iterable["RegisteredVersion"]) -> None:
    """Print a row for each version: accuracies, the monitored metric where it is another one, data, run and date.

    Versions with an alias are in color. The data set is left out if every model has its name, as by default.
    """
    listed = list(rows)
    datasets = [row.tags.get("dataset", "") for row in listed]
    has_other_names = any(name != row.address.rpartition("/")[0] for name, row in zip(datasets, listed, strict=True))
    others = [_monitored(row.tags) for row in listed]
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title="Accuracy of the registered models",
        title_justify="left", title_style="bold",
    )  # fmt: skip
    for name in ("model", "alias"):
        table.add_column(name, no_wrap=True)
    for name in ("val", "test", *(["monitor"] if any(others) else [])):
        table.add_column(name, no_wrap=True, justify="right")
    for name in (*(["data set"] if has_other_names else []), "run", "date"):
        table.add_column(name, overflow="fold")
    for row, monitored in zip(listed, others, strict=True):
        accuracies = [_percent(row.tags.get(f"{split}/accuracy")) for split in ("val", "test")]
        run = row.tags.get("run", "") + (" (best)" if row.tags.get("checkpoint") == "best" else "")
        dataset, date = [row.tags.get("dataset", "")] if has_other_names else [], f"{row.date:%Y-%m-%d %H:%M}"
        values = [*accuracies, monitored or "-"] if any(others) else accuracies
        cells = [row.address, ", ".join(row.aliases), *values, *dataset, run, date]
        table.add_row(*(Text(escape_control(cell)) for cell in cells), style="bold green" if row.aliases else None)
    stdout_console.print(table, soft_wrap=False)


def _monitored(tags: Mapping[str, str]) -> str:
    """Format the monitored metric of a version; empty if it is the validation accuracy, or has no value."""
    name = tags.get("monitor", "")
    if name == "val/accuracy" or name not in tags:
        return ""
    return f"{name} {format_metric(name, float(tags[name]))}{unit(name)}"


def _percent(accuracy: str | None) -> str:
    return f"{float(accuracy):.2%}" if accuracy else "-"


def experiments_table(measured: "Iterable[tuple[ExperimentRecipe, Sequence[EvaluatedRun]]]") -> str:
    """Format experiments as a Markdown table, worst first, each with its runs (one per seed) on the same hardware."""
    rows = sorted(measured, key=lambda row: mean(run.accuracy for run in row[1]))
    lines = [EXPERIMENT_HEADINGS, ["---"] * len(EXPERIMENT_HEADINGS), *(_experiment_row(*row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _experiment_row(recipe: "ExperimentRecipe", runs: "Sequence[EvaluatedRun]") -> list[str]:
    ordered = sorted(runs, key=lambda run: run.seed)
    values = [100 * run.accuracy for run in ordered]
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    seeds = ", ".join(f"{run.seed}: {value:.2f}" for run, value in zip(ordered, values, strict=True))
    target = ""
    if recipe.target is not None:
        reached = round(mean(values), 2) >= recipe.target
        target = f">= {recipe.target:g} %: {'reached' if reached else '**missed**'}"
    return [
        f"`{recipe.command}`" + ("" if recipe.has_val else ", trained on the train and validation splits"),
        f"{mean(values):.2f}{spread} % ({seeds})",
        target,
        format_duration(mean(run.seconds for run in ordered)),
        escape_control(ordered[-1].hardware),
        ", ".join(dict.fromkeys(run.commit for run in ordered if run.commit)),
    ]
