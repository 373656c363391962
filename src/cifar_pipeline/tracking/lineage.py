"""What a run says about where it came from: the code, the data, the command, the versions."""

import os
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import yaml

PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "mlflow", "dvc", "numpy")


def tags() -> dict[str, str]:
    """Facts that a person may want to filter runs by; those that are not to be had here are left out."""
    head = commit()
    facts = {
        "command": shlex.join(["python", *sys.argv]),
        "mlflow.source.name": sys.argv[0],
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": head,
        "python": sys.version.split()[0],
        "git.commit": head,
        "git.dirty": str(bool(diff())).lower() if head else "",
        "dvc.experiment": os.environ.get("DVC_EXP_NAME", ""),
        "dvc.data": dvc_hash("download", "data/raw"),
        **{f"version.{package}": version(package) for package in PACKAGES},
    }
    return {key: value for key, value in facts.items() if value}


def commit() -> str:
    """The commit that is checked out; empty where there is none."""
    return _git("rev-parse", "HEAD")


def diff() -> str:
    """What `src` and `conf` hold beyond the commit; new files are named. Empty in a clean tree and without git."""
    new = _git("ls-files", "--others", "--exclude-standard", "src", "conf")
    return "\n".join(filter(None, [_git("diff", "HEAD", "--", "src", "conf"), new]))


def last_commit(path: Path) -> tuple[str, str]:
    """The newest commit that changed a file and its date, `7c78472` and `2026-11-25`; empty where there is none."""
    commit, _, date = _git("log", "-1", "--format=%h %cs", "--", str(path)).partition(" ")
    return commit, date


def in_commit(commit: str, path: Path) -> str:
    """What a file holds in a commit; empty where it isn't there."""
    return _git("show", f"{commit}:./{path.as_posix()}")


def _git(*arguments: str) -> str:
    """What git prints; empty where there is no git, no repository or no commit."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def dvc_hash(stage: str, output: str, lock: Path = Path("dvc.lock")) -> str:
    """The hash under which DVC keeps an output of a stage, as its lock says."""
    if not lock.is_file():
        return ""
    outputs = (yaml.safe_load(lock.read_text()) or {}).get("stages", {}).get(stage, {}).get("outs", [])
    return next((str(entry.get("md5", "")) for entry in outputs if entry.get("path") == output), "")
