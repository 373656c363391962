"""Git, as somebody who has just installed it would run it."""

import subprocess
from pathlib import Path

import pytest

PERSON = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false")


def git(*arguments: str) -> str:
    """What git prints in the working directory."""
    return subprocess.run(["git", *PERSON, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def leave_repositories(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let nobody find a repository above this folder, or by a variable."""
    for variable in ("GIT_DIR", "GIT_WORK_TREE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(folder.parent))
