"""Run git independently of the user's settings and of repositories above the test's folder."""

import subprocess
from pathlib import Path

import pytest

PERSON = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false")


def git(*arguments: str) -> str:
    """Run git in the working directory; return what it prints."""
    return subprocess.run(["git", *PERSON, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def leave_repositories(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Hide repositories above this folder, and those named by environment variables."""
    for variable in ("GIT_DIR", "GIT_WORK_TREE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(folder.parent))
