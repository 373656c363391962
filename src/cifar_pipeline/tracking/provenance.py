"""Record a run's provenance (commit, diff, data, command, versions), and the tags that conf/mlflow/ sets."""

import logging
import os
import shlex
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import yaml
from omegaconf import DictConfig

from cifar_pipeline.config.params import to_yaml_inline
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.git import GitError, Kind, find_repository, git_diff, warn_git_failed
from cifar_pipeline.utils.safe_io import parse_yaml
from cifar_pipeline.utils.text import redact_arguments, redact_bytes, redact_values

log = logging.getLogger(__name__)

VERSIONED_PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "mlflow", "dvc", "numpy")
# Folders whose changes can affect a result.
CODE_PATHS = ("src", "conf")
# MLflow's tag with the description of a run.
DESCRIPTION_TAG = "mlflow.note.content"
RUN_VARIABLE = "MLFLOW_RUN_ID"


@dataclass(frozen=True)
class _Code:
    """Tags about the code, and the redacted patch from the commit to it."""

    tags: dict[str, str]
    diff: bytes = b""


# What git reported when this process started, by working directory.
_recorded: dict[Path, _Code] = {}


def record_commit() -> None:
    """Read commit and diff from git now, and use them for the rest of this process, which has loaded this code."""
    directory = Path.cwd()
    if directory not in _recorded:
        _recorded[directory] = _read_git()


def tags() -> dict[str, str]:
    """Return the tags of a run; `git.error` and `dvc.error` are the reasons why others are missing."""
    values = {
        "command": _escape_undecodable(shlex.join(["python", *redact_arguments(sys.argv)])),
        "mlflow.source.name": _escape_undecodable(sys.argv[0]),
        "mlflow.source.type": "LOCAL",
        "python": sys.version.split()[0],
        **_code().tags,
        "dvc.experiment": os.environ.get("DVC_EXP_NAME", ""),
        **_dvc_tags(),
        **{f"version.{package}": version(package) for package in VERSIONED_PACKAGES},
    }
    return {key: value for key, value in values.items() if value}


def configured_tags(options: DictConfig) -> dict[str, str]:
    """Return the tags and the description of conf/mlflow/ as the tags of a run."""
    values = {name: value if isinstance(value, str) else to_yaml_inline(value) for name, value in options.tags.items()}
    description = {} if options.description is None else {DESCRIPTION_TAG: options.description}
    return redact_values(values | description)  # type: ignore[no-any-return]


def reject_foreign_run(*run_ids: str) -> None:
    """Raise UserError if MLFLOW_RUN_ID, the run that MLflow's own functions would resume, is none of these."""
    required = os.environ.get(RUN_VARIABLE)
    if required and required not in run_ids:
        raise UserError(
            f"{RUN_VARIABLE} names the run {required}, but a training or sweep has a run of its own, which is found by "
            f"its configuration, code and data: unset {RUN_VARIABLE} (`mlflow run` sets it for the commands it starts)."
        )


def commit() -> str:
    """Return the hash of the commit that is checked out; empty if there is none, or if git fails."""
    return _code().tags.get("git.commit", "")


def diff() -> bytes:
    """Return the uncommitted changes of `src` and `conf` as a patch; empty without changes or without a commit."""
    return _code().diff


def dvc_hash(stage: str, output: str, lock: Path = Path("dvc.lock")) -> str:
    """Read the hash of a stage's output from DVC's lock file; empty if the file does not have it."""
    value, error = _locked_hash(stage, output, lock)
    if error:
        log.warning(f"{lock} has no hash of {output}: {error}. `git checkout {lock}` or `dvc repro` restores the file.")
    return value


def _code() -> _Code:
    return _recorded.get(Path.cwd()) or _read_git()


def _read_git() -> _Code:
    repository = find_repository()
    if repository.kind is not Kind.FOUND:
        return _Code({"git.error": repository.error})
    code_tags = {"git.commit": repository.commit, "mlflow.source.git.commit": repository.commit}
    try:
        changes = git_diff(CODE_PATHS)
    except GitError as error:
        return _Code(code_tags | {"git.error": warn_git_failed(error)})
    return _Code(code_tags | {"git.dirty": str(bool(changes)).lower()}, redact_bytes(changes))


def _dvc_tags() -> dict[str, str]:
    data, error = _locked_hash("download", "data/raw", Path("dvc.lock"))
    return {"dvc.data": data, "dvc.error": error}


def _locked_hash(stage: str, output: str, lock: Path) -> tuple[str, str]:
    """Return the hash of a stage's output in DVC's lock file, and why the file can't be read."""
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
        return "", "it is not a lock file of DVC"


def _escape_undecodable(text: str) -> str:
    """Escape bytes of a command line that are not UTF-8 as `\\xff`, so that a database can store it."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
