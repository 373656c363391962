"""What a run says about where it came from: the code, the data, the command, the versions.

The results that are committed in this repository: what a new one is compared with.
"""

import os
import shlex
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from cifar_pipeline.utils.console import warning
from cifar_pipeline.utils.git import GitError, Kind, find_repository, git_diff, in_commit, last_commit, warn_git_failed
from cifar_pipeline.utils.safe_io import parse_json, parse_yaml
from cifar_pipeline.utils.text import redact_arguments, redact_bytes

VERSIONED_PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "mlflow", "dvc", "numpy")
# The folders whose changes can change a result.
CODE_PATHS = ("src", "conf")


@dataclass(frozen=True)
class _Code:
    """Facts for tags, and the redacted patch that leads from the commit to the code."""

    facts: dict[str, str]
    difference: bytes = b""


# What git said when this process started, by the working directory.
_recorded: dict[Path, _Code] = {}


def record_commit() -> None:
    """Ask git now, and let the other functions answer so for the rest of this process: its code is of this commit."""
    here = Path.cwd()
    if here not in _recorded:
        _recorded[here] = _ask_git()


def tags() -> dict[str, str]:
    """Facts that a person may want to filter runs by; `git.error` and `dvc.error` say why others are missing."""
    facts = {
        "command": _text(shlex.join(["python", *redact_arguments(sys.argv)])),
        "mlflow.source.name": _text(sys.argv[0]),
        "mlflow.source.type": "LOCAL",
        "python": sys.version.split()[0],
        **_code().facts,
        "dvc.experiment": os.environ.get("DVC_EXP_NAME", ""),
        **_dvc_tags(),
        **{f"version.{package}": version(package) for package in VERSIONED_PACKAGES},
    }
    return {key: value for key, value in facts.items() if value}


def commit() -> str:
    """The commit that is checked out; empty where there is none, or git doesn't say."""
    return _code().facts.get("git.commit", "")


def diff() -> bytes:
    """What `src` and `conf` hold beyond the commit, as a patch. Empty in a clean tree, and without a commit."""
    return _code().difference


def dvc_hash(stage: str, output: str, lock: Path = Path("dvc.lock")) -> str:
    """The hash under which DVC keeps an output of a stage, as its lock says; empty where the lock doesn't know it."""
    found, error = _locked_hash(stage, output, lock)
    if error:
        warning(f"{lock} says nothing about {output}: {error}. `git checkout {lock}` or `dvc repro` writes it anew.")
    return found


def _code() -> _Code:
    return _recorded.get(Path.cwd()) or _ask_git()


def _ask_git() -> _Code:
    repository = find_repository()
    if repository.kind is not Kind.FOUND:
        return _Code({"git.error": repository.error})
    facts = {"git.commit": repository.commit, "mlflow.source.git.commit": repository.commit}
    try:
        changes = git_diff(CODE_PATHS)
    except GitError as error:
        return _Code(facts | {"git.error": warn_git_failed(error)})
    return _Code(facts | {"git.dirty": str(bool(changes)).lower()}, redact_bytes(changes))


def _dvc_tags() -> dict[str, str]:
    found, error = _locked_hash("download", "data/raw", Path("dvc.lock"))
    return {"dvc.data": found, "dvc.error": error}


def _locked_hash(stage: str, output: str, lock: Path) -> tuple[str, str]:
    """The hash of a stage's output in DVC's lock, and what keeps the lock from being read."""
    try:
        content = parse_yaml(lock.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "", ""
    except (OSError, ValueError, yaml.YAMLError) as error:
        return "", f"it can't be read ({' '.join(str(error).split())[:200]})"
    try:
        outputs = (content or {}).get("stages", {}).get(stage, {}).get("outs", [])
        return next((str(entry.get("md5", "")) for entry in outputs if entry.get("path") == output), ""), ""
    except (AttributeError, TypeError):
        return "", "it is not what DVC writes"


def _text(words: str) -> str:
    """Words of a command line as a database takes them: bytes that are no UTF-8 are shown as `\\xff`."""
    return words.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


METRICS_FILE, PARAMS_FILE = Path("reports/metrics.json"), Path("params.yaml")


def published_results() -> dict[str, Any]:
    """The newest committed metrics.json with `commit`, `date` and the `experiment` that params.yaml named there.

    Empty where there is no git, or no such file in its commits; `{"error": ...}` where that could not be found out.
    """
    repository = find_repository()
    if repository.kind is Kind.REFUSED:
        return {"error": f"git gives no answer ({repository.reason})"}
    if repository.kind is not Kind.FOUND:
        return {}
    try:
        commit, date = last_commit(METRICS_FILE)
        metrics = in_commit(commit, METRICS_FILE) if commit else None
        if metrics is None:
            return {}
        return {"commit": commit, "date": date, **_read(metrics, in_commit(commit, PARAMS_FILE) or b"")}
    except GitError as error:
        return {"error": f"git gives no answer ({warn_git_failed(error)})"}


def _read(metrics: bytes, params: bytes) -> dict[str, Any]:
    """What both files say; no `metrics` where the first is not what `evaluate` writes."""
    try:
        values, choices = parse_json(metrics), parse_yaml(params)
    except (ValueError, yaml.YAMLError) as error:
        return {"error": f"the committed results can't be read ({' '.join(str(error).split())[:200]})"}
    if not isinstance(values, dict):
        return {"error": f"the committed {METRICS_FILE} holds no table of values"}
    experiment = choices.get("experiment") if isinstance(choices, dict) else None
    return {"experiment": str(experiment or ""), "metrics": values}
