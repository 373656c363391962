"""Summarize a sweep: load its trials from MLflow, compare them, and print how to run the best one in the pipeline.

The comparison is printed, and written into the sweep's folder as figures, tables and the page compare.html.
"""

import logging
import math
import re
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cifar_pipeline.config.params import PARAMS, SWEEP_GROUPS, is_params_key, params_values
from cifar_pipeline.reporting.html import figure_uri, render
from cifar_pipeline.reporting.metric_names import display_name, heading_name
from cifar_pipeline.reporting.pareto import (
    front_markdown,
    front_numeric_columns,
    front_rows,
    front_table,
    front_title,
    pareto_figure,
)
from cifar_pipeline.reporting.significance import describe_differences
from cifar_pipeline.reporting.style import save
from cifar_pipeline.reporting.sweep_comparison import (
    FAILED_STATUSES,
    FINISHED,
    PRUNED,
    SPLIT_KEYS,
    Comparison,
    TrialGroup,
    group_name,
    winner,
)
from cifar_pipeline.reporting.sweep_plots import curves, dots, heat_map, is_grid, line, numeric_column
from cifar_pipeline.reporting.sweep_tables import (
    RankingTable,
    as_table,
    failed_trials,
    format_mean_std,
    ranking_table,
    short_header,
    to_csv,
    to_markdown,
    uninformative_columns,
)
from cifar_pipeline.sweeps.job import LEVEL_KEY, RANKING_KEYS
from cifar_pipeline.tracking.sweeps import (
    TrialRecord,
    close_stale_trials,
    delete_sweep,
    describe_sweep,
    end_sweep,
    find_sweep,
    history,
    read_trials,
)
from cifar_pipeline.tracking.trial import (
    FAILURE_TAG,
    OBJECTIVES_TAG,
    PRUNED_TAG,
    RUN_METRICS,
    SECONDS_TAG,
    Objective,
    checkpoint_metrics,
    parse_overrides,
)
from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.console import status, stdout_console
from cifar_pipeline.utils.errors import EnvironmentFailure, UserError
from cifar_pipeline.utils.git import is_in_repository
from cifar_pipeline.utils.safe_io import parse_json
from cifar_pipeline.utils.text import list_names

log = logging.getLogger(__name__)


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
    ranking, groups = ranking_table(comparison), comparison.groups
    names, hidden = short_header(comparison, ranking), uninformative_columns(ranking)
    order = [column for column in _metric_first(ranking) if column not in hidden]
    description = _describe(comparison)
    return render(
        "compare.html",
        title=comparison.title,
        trials=len(comparison.trials),
        metric=display_name(comparison.metric),
        checkpoint=comparison.checkpoint,
        over=comparison.over,
        best=_best(comparison),
        command=command,
        split_keys=_swept_split_keys(comparison),
        header=[(names[column], ranking.header[column]) for column in order],
        right=[position for position, column in enumerate(order) if column in ranking.numeric_columns],
        rows=[
            PageRow(
                [_unbroken(row[column]) for column in order],
                is_best=index == 0 and _has_value(group, comparison.metric),
                has_failures=group.count(*FAILED_STATUSES) > 0,
            )
            for index, (group, row) in enumerate(zip(groups, ranking.rows, strict=True))
        ],
        differences=describe_differences(comparison),
        figures=[
            {"source": figure_uri(figure), "alt": f"{heading}. {description}"} for heading, figure in figures.items()
        ],
        failed=failed_trials(comparison),
        front=_front(comparison),
    )


def _front(comparison: Comparison) -> dict[str, Any] | None:
    """Return the Pareto front of a search for several objectives as the page shows it; None for one objective."""
    if len(comparison.objectives) < 2:
        return None
    header, rows = front_rows(comparison)
    right = front_numeric_columns(comparison, header)
    return {"title": front_title(comparison), "header": header, "rows": rows, "right": right}


def _unbroken(cell: str) -> str:
    """Keep a p-value on one line."""
    return re.sub(r"\(p ([=<]) ", "(p\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", cell)


def _metric_first(ranking: RankingTable) -> list[int]:
    """Order the table's columns with the metric after the rank, because narrow screens show only the first ones."""
    metric = ranking.metric_column
    return [0, metric, *(column for column in range(1, len(ranking.header)) if column != metric)]


def _best(comparison: Comparison) -> dict[str, str] | None:
    if not comparison.groups or not _has_value(comparison.groups[0], comparison.metric):
        return None
    best = comparison.groups[0]
    return {
        "caption": _of_the_best(comparison, display_name(comparison.metric), group_name(comparison, best)),
        "value": format_mean_std(best, comparison.metric, comparison.runs_per_group),
    }


def _of_the_best(comparison: Comparison, metric: str, name: str) -> str:
    """Name a value of the best group, which is the only one if nothing but seed, fold or split is swept."""
    return f"{metric} of the best: {name}" if comparison.choices or not comparison.replicates else f"{metric}, {name}"


def _describe(comparison: Comparison) -> str:
    """Describe the figures as text: the best and the last group with a value."""
    known = [group for group in comparison.groups if _has_value(group, comparison.metric)]
    if not known:
        return "No trial has a value."
    first, *last = [
        f"{group_name(comparison, group)} with {format_mean_std(group, comparison.metric, comparison.runs_per_group)}"
        for group in (known if len(known) == 1 else (known[0], known[-1]))
    ]
    metric = heading_name(comparison.metric)
    if last:
        return f"{metric} from the best, {first}, to the last, {last[0]}."
    return f"{_of_the_best(comparison, metric, first)}."


def _has_value(group: TrialGroup, metric: str) -> bool:
    return not math.isnan(group.mean(metric))


def figure(comparison: Comparison) -> Figure:
    """Draw the trials as a heat map, lines or a dot plot, depending on the swept columns that are choices.

    Heat map: two columns that fill a grid, unless a search proposed the values. Lines: one column of numbers, or one of
    two if the grid is too sparse, with a line for each value of the other. Dot plot: everything else.
    """
    is_search = bool(comparison.objectives)
    if len(comparison.choices) == 2 and is_grid(comparison) and not is_search:
        return heat_map(comparison)
    if numeric_column(comparison) is not None:
        return line(comparison)
    return dots(comparison)


def write(
    comparison: Comparison, folder: Path, command: str = "", search: Mapping[str, Figure] | None = None
) -> list[Path]:
    """Write comparison.csv, comparison.md, comparison.png, curves.png and compare.html into `folder`.

    With several objectives also pareto.png. The same comparison gives the same bytes.

    Args:
        command: runs the best trial in the pipeline; shown on the page.
        search: figures of a search by file name; saved and shown on the page.

    Returns:
        Paths of the files.
    """
    figures = {"comparison.png": figure(comparison), "curves.png": curves(comparison)}
    markdown = to_markdown(comparison)
    if len(comparison.objectives) > 1:
        figures["pareto.png"] = pareto_figure(comparison)
        markdown += f"\n{front_markdown(comparison)}"
    figures |= search or {}
    shown = {FIGURE_HEADINGS[name]: drawn for name, drawn in figures.items()}
    texts = {
        "comparison.csv": to_csv(comparison),
        "comparison.md": markdown,
        "compare.html": sweep_page(comparison, shown, command),
    }
    for name, content in texts.items():
        with atomic_write(folder / name) as tmp:
            tmp.write_text(content, encoding="utf-8", newline="\n")
    for name, drawn in figures.items():
        save(drawn, folder / name)
    return [folder / name for name in (*texts, *figures)]


# Heading of each figure on the page, by file name.
FIGURE_HEADINGS = {
    "comparison.png": "Trials",
    "curves.png": "Epoch by epoch",
    "pareto.png": "Pareto front",
    "search_history.png": "Result of each trial",
    "search_importance.png": "Importance of the searched values",
    "search_parallel.png": "Values of each trial",
}


def print_comparison(comparison: Comparison) -> None:
    """Print the table, with several objectives the Pareto front, then failed trials and what differs beyond chance."""
    # The console does not wrap lines in pipes, but the table's columns need its width.
    stdout_console.print(as_table(comparison, stdout_console.width), soft_wrap=False)
    if len(comparison.objectives) > 1:
        stdout_console.print(front_table(comparison), soft_wrap=False)
    for sentence in (*failed_trials(comparison), *describe_differences(comparison)):
        log.info(sentence)


# Config groups of a job's command line that do not affect its training. Threads and engine come from the run's tags.
NON_TRAINING_GROUPS = ("hydra", "runtime", "rerun", "comparison", *SWEEP_GROUPS)
METRICS = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")


def reproduce_command(record: TrialRecord, without: Collection[str] = ()) -> str:
    """Format the command that runs a trial in the pipeline: `dvc exp run -S ...`.

    Without git, where DVC has no experiments: the lines to write in params.yaml, then `dvc repro`.

    The number of threads and the engine are included, because only with the same ones are the weights bitwise equal.

    Args:
        without: keys of the trial that the pipeline should not take over.
    """
    assert record.run is not None
    values = {
        key: value
        for key, value in parse_overrides(record.overrides).items()
        if key.partition(".")[0] not in NON_TRAINING_GROUPS and key not in without
    }
    for key in ("threads", "engine"):
        used = record.run.data.tags.get(key, "auto")
        # A training that was resumed on other hardware has several, separated by commas.
        values[f"runtime.{key}"] = "auto" if "," in used else used
    if is_in_repository():
        settings = [word for item in values.items() for word in ("-S", dvc_override(*item))]
        return shlex.join(["dvc", "exp", "run", *settings])
    lines = "".join(f"  {key}: {value}\n" for key, value in params_values(values).items())
    return f"Set in {PARAMS}:\n{lines}Then type: dvc repro"


def dvc_override(key: str, value: str) -> str:
    """Format a value of params.yaml as an argument of `dvc exp run -S`."""
    return f"{key}={value}" if is_params_key(key) else f"++overrides.{key}={value}"


# In MLflow's description of a sweep, above the table.
COMPARISON_HEADING = "## Comparison of the trials"


def finish_sweep(parent: str, folder: Path) -> bool:
    """Print the comparison, save it to `folder` and the parent run, and end that run. Return whether all finished."""
    status("Comparing the trials")
    close_stale_trials(parent)
    comparison = load_comparison(parent)
    command = print_summary(comparison, parent)
    all_finished = bool(comparison.trials["status"].isin((FINISHED, PRUNED)).all())
    status("Drawing the comparison and its page")
    files = write(comparison, folder, command, _search_figures())
    describe_sweep(parent, COMPARISON_HEADING, (folder / "comparison.md").read_text(encoding="utf-8").splitlines()[2:])
    end_sweep(parent, "FINISHED" if all_finished else "FAILED", files)
    log.info(
        f"Saved the comparison to {folder} and the sweep's MLflow run (`make ui`): open {folder / 'compare.html'}."
    )
    return all_finished


def _search_figures() -> dict[str, Figure]:
    """Draw Optuna's figures of the search that this process has run; empty after another sweep."""
    if "cifar_pipeline.sweeps.search" not in sys.modules:
        return {}
    from cifar_pipeline.reporting.search_figures import search_figures
    from cifar_pipeline.sweeps.search import current_search
    from cifar_pipeline.sweeps.study import translate_storage_errors

    search = current_search()
    if search is None:
        return {}
    try:
        with translate_storage_errors():
            return search_figures(search.study, [objective.metric for objective in search.plan.objectives])
    except EnvironmentFailure as failure:
        log.warning(f"The search has no figures: {failure}")
        return {}


def abort_sweep(parent: str, is_holder: bool = True) -> None:
    """End the parent run of an interrupted sweep; delete it if no trial was started.

    Args:
        is_holder: False if another process runs the same sweep and so owns the parent run, which stays as it is.
    """
    close_stale_trials(parent)
    if not is_holder:
        return
    end_sweep(parent, "KILLED", [])
    if not read_trials(parent):
        delete_sweep(parent)


def print_summary(comparison: Comparison, parent: str) -> str:
    """Print the table and how to run the best trial in the pipeline; return the latter, empty without a best trial."""
    print_comparison(comparison)
    best = winner(comparison)
    if best is None:
        log.warning("No trial finished, so there is no best trial.")
        return ""
    record = next(record for record in read_trials(parent) if record.run_id == best["run_id"])
    name, split_keys, on_own_split = best["name"], _swept_split_keys(comparison), ""
    if split_keys:
        # A fold or a split is there to compare choices: the pipeline trains the chosen ones on its own split.
        name = group_name(comparison, comparison.groups[0]) if comparison.choices else "this"
        on_own_split = f", on its own split (without {' and '.join(split_keys)}),"
    log.info(f"To run {name} in the pipeline{on_own_split} and evaluate it on the test split:")
    command = reproduce_command(record, (*split_keys, "data.folds") if "data.fold" in split_keys else split_keys)
    for row in command.splitlines():
        log.info(f"  {row}")
    return command


def _swept_split_keys(comparison: Comparison) -> tuple[str, ...]:
    return tuple(key for key in comparison.replicates if key in SPLIT_KEYS)


def load_comparison(parent: str) -> Comparison:
    """Load the trials of a sweep as a table, with their histories.

    Raises:
        UserError: an older commit made the sweep.
    """
    run = find_sweep(parent)
    assert run is not None
    if missing := [key for key in (*RANKING_KEYS, LEVEL_KEY) if key not in run.data.tags]:
        raise UserError(
            f"The sweep {run.info.run_name} was made by an older commit, which did not record its {missing[0]}: "
            "type its command again."
        )
    swept = tuple(parse_json(run.data.tags["swept"]))
    metric, mode, checkpoint = (run.data.tags[key] for key in RANKING_KEYS)
    objectives = tuple(Objective(*pair) for pair in parse_json(run.data.tags.get(OBJECTIVES_TAG, "[]")))
    others = [objective.metric for objective in objectives if objective.metric not in RUN_METRICS]
    keys = list(dict.fromkeys([*METRICS, metric, *others]))
    records = read_trials(parent)
    epochs = {record.run_id: history(record.run_id, keys) for record in records if record.run}
    trials = pd.DataFrame(
        [
            _row(record, swept, run.info.status)
            | dict.fromkeys(keys, math.nan)
            | checkpoint_metrics(epochs.get(record.run_id, ()), metric, mode, checkpoint)
            | data
            for record, data in zip(records, _data_columns(records), strict=True)
        ]
    ).drop(columns="epoch", errors="ignore")
    histories = {run_id: pd.DataFrame(rows) for run_id, rows in epochs.items()}
    datasets = sorted({name for name in trials.get("dataset", ()) if name})
    title = f"{run.info.run_name} on {list_names(datasets, ' and ') or 'no data'}"
    level = float(run.data.tags[LEVEL_KEY])
    return Comparison(title, trials, swept, histories, metric, mode, checkpoint, objectives, significance_level=level)


# Keys of `data` that decide how images are stored and not which ones: the same images in another size.
FORMAT_KEYS = ("size", "resize_mode")


def _data_columns(records: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """Describe the data of each trial as the columns `dataset`, `images`, `train_images` and `val_images`.

    `images` is a hash of the processed data. Trials that differ only in the size of the images have one, that of the
    first of them.
    """
    first_hashes: dict[tuple[str, ...], str] = {}
    rows = []
    for record in records:
        row: dict[str, Any] = {"dataset": "", "images": "", "train_images": math.nan, "val_images": math.nan}
        if record.run and record.run.inputs and record.run.inputs.dataset_inputs:
            dataset, params = record.run.inputs.dataset_inputs[0].dataset, record.run.data.params
            # MLflow keeps the first entry of a name and digest, which may be another tool's, without these numbers.
            numbers = parse_json(dataset.profile or "{}").get("images", {})
            split = sorted(
                f"{key}={value}"
                for key, value in params.items()
                if key.startswith("data.") and key.rpartition(".")[2] not in FORMAT_KEYS
            )
            row = {
                "dataset": dataset.name,
                "images": first_hashes.setdefault((dataset.name, *split), dataset.digest),
                "train_images": numbers.get("train", math.nan),
                "val_images": numbers.get("val", math.nan),
            }
        rows.append(row)
    return rows


def _row(record: TrialRecord, swept: tuple[str, ...], sweep_status: str) -> dict[str, Any]:
    values = parse_overrides(record.overrides)
    row: dict[str, Any] = {key: values.get(key, "") for key in swept}
    run = record.run
    if run is None:
        trial_status, reason = ("RUNNING", "") if sweep_status == "RUNNING" else ("FAILED", "it never started")
        return {"run_id": "", "name": "", "status": trial_status, "reason": reason, "reused": False} | row
    tags, trial_status = run.data.tags, run.info.status
    if trial_status == "KILLED" and PRUNED_TAG in tags:
        trial_status = PRUNED
    reason = tags.get(PRUNED_TAG) or tags.get(FAILURE_TAG, "its process was killed" if trial_status == "KILLED" else "")
    return {
        "run_id": run.info.run_id,
        "name": run.info.run_name,
        "status": trial_status,
        "reason": reason,
        "reused": record.reused,
        **row,
        "seconds": float(tags.get(SECONDS_TAG, "nan")),
        **{name: run.data.metrics.get(name, math.nan) for name in RUN_METRICS},
    }
