"""Print the experiments of `dvc exp run`, each with what it changes and its results.

`dvc exp show` has a column for each parameter, of which a terminal shows the first few. A change of params.yaml is
several of them: it is also in composed.yaml, in the section of each stage that uses it. Here it is shown once.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from cifar_pipeline.reporting.metric_names import format_metric, unit
from cifar_pipeline.utils.console import format_duration, stdout_console
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import escape_control, flatten_dict, list_names, one_line

PARAMS, COMPOSED, METRICS = "params.yaml", "composed.yaml", "reports/metrics.json"
PROCESSED = "data/processed"
ACCURACY, SECONDS = "test/accuracy", "train/seconds"
# Keys of params.yaml that are part of a group of another name.
GROUPS = {"image_dir": "data"}


@dataclass(frozen=True)
class ExperimentResult:
    """A revision that DVC lists: the workspace, a commit or an experiment.

    Attributes:
        name: of the experiment or branch; of other commits the beginning of the hash.
        state: `queued`, `running` or `failed`; empty if it has finished.
        metrics: content of metrics.json, flattened to `test/accuracy`.
        changes: values that differ from those of the commit it is based on, as in a command line of Hydra.
        is_commit: whether it is that commit.
        has_other_data: whether its images, or their split, are not those of that commit.
    """

    name: str
    state: str
    metrics: dict[str, float]
    changes: list[str]
    is_commit: bool = False
    has_other_data: bool = False


def print_experiments() -> None:
    """Print the workspace, the present commit, and the experiments that are based on it.

    Raises:
        UserError: DVC cannot list them, as outside of a git repository.
    """
    # The console does not wrap lines in pipes, but the table's columns need its width.
    results = list(parse_experiments(read_experiments()))
    stdout_console.print(dvc_experiments_table(results), soft_wrap=False)
    if note := other_data_note(results):
        stdout_console.print(Text(escape_control(note)), style="bold yellow")
    if len(results) <= len(("workspace", "commit")):
        stdout_console.print("No experiments yet: `dvc exp run -S optimizer=adam` runs one.")


def read_experiments() -> list[dict[str, Any]]:
    """Return what `dvc exp show --json` prints."""
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json"]
    process = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
    try:
        revisions: list[dict[str, Any]] = json.loads(process.stdout)
    except ValueError:
        reason = one_line(process.stderr).removeprefix("ERROR: ") or f"exit code {process.returncode}"
        if "Only supported for Git repositories" in reason:
            raise UserError(
                "DVC's experiments need a git repository with a commit, which this folder is not part of: `git init`, "
                "`git add --all`, `git commit`, then `dvc config --local --unset core.no_scm` make it one."
            ) from None
        raise UserError(f"`dvc exp show` cannot list the experiments: {reason}") from None
    return revisions


def parse_experiments(revisions: Iterable[Mapping[str, Any]]) -> Iterator[ExperimentResult]:
    """Yield the rows of the table in DVC's order: the workspace, the commit, and its experiments."""
    commits = [revision for revision in revisions if revision["rev"] != "workspace"]
    for revision in revisions:
        is_commit = revision["rev"] != "workspace"
        baseline = revision if is_commit else commits[0] if commits else revision
        yield _parse(revision, baseline, is_commit=is_commit)
        for experiment in revision["experiments"] or ():
            state = (experiment["executor"] or {}).get("state") or ""
            tip = experiment["revs"][0]
            yield _parse(tip, baseline, state="" if state == "success" else state)


def _parse(
    revision: Mapping[str, Any], baseline: Mapping[str, Any], state: str = "", is_commit: bool = False
) -> ExperimentResult:
    values, results = (_read(revision, kind) for kind in ("params", "metrics"))
    return ExperimentResult(
        name=revision["name"] or (revision["rev"][:7] if is_commit else revision["rev"]),
        state=state or ("failed" if revision["error"] else ""),
        metrics=flatten_dict(results.get(METRICS, {}), "/"),
        changes=changed_values(values, _read(baseline, "params")) if values else [],
        is_commit=is_commit,
        has_other_data=len({_data_hash(revision), _data_hash(baseline)} - {None}) > 1,
    )


def _data_hash(revision: Mapping[str, Any]) -> str | None:
    """Return DVC's hash of the images that a revision was trained on; None if it is not known."""
    dependencies = (revision["data"] or {}).get("deps") or {}
    return (dependencies.get(PROCESSED) or {}).get("hash")


def other_data_note(results: Sequence[ExperimentResult]) -> str:
    """Name the experiments whose accuracy says nothing in comparison with the commit's; empty if there are none."""
    names = [result.name for result in results if result.has_other_data]
    commits = [result.name for result in results if result.is_commit]
    if not names or not commits:
        return ""
    return f"Trained on other data than {commits[0]}, so do not compare their accuracy with it: {list_names(names)}."


def _read(revision: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return the values of each file of params or metrics; files that DVC cannot read are left out."""
    files = (revision["data"] or {}).get(kind) or {}
    return {path: file["data"] for path, file in files.items() if file.get("data")}


def changed_values(values: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[str]:
    """List the values that differ between two versions of params.yaml and composed.yaml, as `optimizer.lr=0.01`.

    Of composed.yaml only those that no change of params.yaml explains, such as an edit of a file in conf/.
    """
    chosen = _differences(_selected(values.get(PARAMS, {})), _selected(baseline.get(PARAMS, {})))
    composed = _differences(_merge_sections(values.get(COMPOSED, {})), _merge_sections(baseline.get(COMPOSED, {})))
    explained = [*chosen, *(GROUPS[key] for key in chosen if key in GROUPS)]
    if "experiment" in chosen:
        composed = {}
    others = {
        key: text
        for key, text in composed.items()
        if not any(key == name or key.startswith(f"{name}.") for name in explained)
    }
    return [*chosen.values(), *others.values()]


def _selected(params: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten params.yaml; its overrides are named like the values that they replace."""
    return flatten_dict({key: value for key, value in params.items() if key != "overrides"}) | flatten_dict(
        params.get("overrides") or {}
    )


def _merge_sections(composed: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Flatten composed.yaml, with the values that several stages use once."""
    return {key: value for section in composed.values() for key, value in flatten_dict(section).items()}


def _differences(values: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, str]:
    changed = {key: value for key, value in values.items() if key not in baseline or baseline[key] != value}
    set_values = {key: f"{key}={_plain(value)}" for key, value in changed.items()}
    return set_values | {key: f"~{key}" for key in baseline if key not in values}


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def dvc_experiments_table(results: Sequence[ExperimentResult]) -> Table:
    """Format experiments as a table: test accuracy, the monitored metric, time of training, and what they change."""
    names = dict.fromkeys(name for result in results for name in result.metrics)
    monitors = [name for name in names if not name.startswith("test/") and name.partition("/")[0] != "train"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("experiment", overflow="fold")
    for name in (ACCURACY, *monitors):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("training", justify="right", no_wrap=True)
    commits = [result.name for result in results if result.is_commit]
    table.add_column(f"changes to {escape_control(commits[0])}" if commits else "changes", overflow="fold")
    for result in results:
        cells = [
            result.name + (f" ({result.state})" if result.state else ""),
            *(_format(name, result.metrics.get(name)) for name in (ACCURACY, *monitors)),
            format_duration(result.metrics[SECONDS]) if SECONDS in result.metrics else "-",
            " ".join(result.changes),
        ]
        table.add_row(*(Text(escape_control(cell)) for cell in cells), style="bold" if result.is_commit else None)
    return table


def _format(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return format_metric(name, value) + unit(name)
