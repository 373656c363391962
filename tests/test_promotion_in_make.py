"""`make` promotes a model once, and again when the model, its metrics, the policy, the code or the database changes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.source_tree import ROOT

STUB = """#!/bin/sh
case "$*" in *promote*) echo "$@" >> promotions; exit $(cat code 2>/dev/null || echo 0);; esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose commands are stubs that record promotions."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt", "params.yaml", "models/run.json", "reports/metrics.json",
                 "conf/registry/default.yaml", "conf/experiment/tutorial.yaml", "src/registry.py", "promote",
                 "src/cifar_pipeline/tracking/registry.py", "mlflow.db"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name in ("python", "dvc"):
        (binaries / name).write_text(STUB)
        (binaries / name).chmod(0o755)
    (tmp_path / ".venv" / ".set-up").write_text(str((tmp_path / ".venv").resolve()))
    return tmp_path


def promotions(project: Path, **variables: str) -> int:
    """Run `make`, and return the number of promotions so far."""
    environment = {**os.environ, **variables}
    environment.pop("MAKEFLAGS", None)
    subprocess.run(["make"], cwd=project, env=environment, check=True, capture_output=True)
    return len((project / "promotions").read_text().splitlines())


@pytest.mark.parametrize(
    "name",
    [
        "models/run.json",
        "reports/metrics.json",
        "conf/registry/default.yaml",
        "src/cifar_pipeline/tracking/registry.py",
    ],
)
def test_a_change_promotes_again_whatever_its_time(project: Path, name: str) -> None:
    assert promotions(project) == promotions(project) == 1
    (project / name).write_text("another")
    os.utime(project / name, (0, 0))  # as DVC's cache and `git checkout` may leave it
    assert promotions(project) == promotions(project) == 2


def test_another_database_or_server_promotes_again(project: Path) -> None:
    assert promotions(project) == 1
    (project / "mlflow.db").rename(project / "old.db")
    (project / "mlflow.db").touch()
    assert promotions(project) == 2
    assert promotions(project, MLFLOW_TRACKING_URI="http://elsewhere") == 3


def test_a_model_that_was_not_promoted_is_tried_again(project: Path) -> None:
    (project / "code").write_text("2")
    assert promotions(project) == 1 and promotions(project) == 2
