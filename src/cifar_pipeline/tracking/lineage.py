"""What a run says about where it came from: the code, the data, the command, the versions."""

import os
import shlex
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import yaml

from cifar_pipeline.console import warn
from cifar_pipeline.documents import yaml_of
from cifar_pipeline.git import GitError, Kind, difference, find_repository, refused
from cifar_pipeline.redaction import redacted_bytes, redacted_words

PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "mlflow", "dvc", "numpy")
# The folders whose changes can change a result.
CODE = ("src", "conf")


@dataclass(frozen=True)
class _Code:
    """Facts for tags, and the redacted patch that leads from the commit to the code."""

    facts: dict[str, str]
    difference: bytes = b""


# What git said when this process started, by the working directory.
_noted: dict[Path, _Code] = {}


def note() -> None:
    """Ask git now, and let the other functions answer so for the rest of this process: its code is of this commit."""
    here = Path.cwd()
    if here not in _noted:
        _noted[here] = _ask_git()


def tags() -> dict[str, str]:
    """Facts that a person may want to filter runs by; `git.error` and `dvc.error` say why others are missing."""
    facts = {
        "command": _text(shlex.join(["python", *redacted_words(sys.argv)])),
        "mlflow.source.name": _text(sys.argv[0]),
        "mlflow.source.type": "LOCAL",
        "python": sys.version.split()[0],
        **_code().facts,
        "dvc.experiment": os.environ.get("DVC_EXP_NAME", ""),
        **_of_dvc(),
        **{f"version.{package}": version(package) for package in PACKAGES},
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
    found, error = _locked(stage, output, lock)
    if error:
        warn(f"{lock} says nothing about {output}: {error}. `git checkout {lock}` or `dvc repro` writes it anew.")
    return found


def _code() -> _Code:
    return _noted.get(Path.cwd()) or _ask_git()


def _ask_git() -> _Code:
    repository = find_repository()
    if repository.kind is not Kind.FOUND:
        return _Code({"git.error": repository.error})
    facts = {"git.commit": repository.commit, "mlflow.source.git.commit": repository.commit}
    try:
        changes = difference(CODE)
    except GitError as error:
        return _Code(facts | {"git.error": refused(error)})
    return _Code(facts | {"git.dirty": str(bool(changes)).lower()}, redacted_bytes(changes))


def _of_dvc() -> dict[str, str]:
    found, error = _locked("download", "data/raw", Path("dvc.lock"))
    return {"dvc.data": found, "dvc.error": error}


def _locked(stage: str, output: str, lock: Path) -> tuple[str, str]:
    """The hash of a stage's output in DVC's lock, and what keeps the lock from being read."""
    try:
        content = yaml_of(lock.read_text(encoding="utf-8"))
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
