"""Commands of the documentation that no other test types."""

import pytest

from helpers.workspace import Workspace, stages_that

pytestmark = pytest.mark.long


def test_experiments_are_compared_kept_and_left(copy: Workspace) -> None:
    copy.dvc("exp", "run", "--name", "faster", "-S", "++overrides.optimizer.lr=0.01")
    rows = copy.run("python", "src/report.py", "experiments").splitlines()
    assert [row.split()[0] for row in rows if "optimizer.lr=0.01" in row] == ["workspace", "faster"]
    assert "optimizer.lr" in copy.dvc("params", "diff")
    assert "test.accuracy" in copy.dvc("metrics", "diff")
    restored = ("params.yaml", "composed.yaml", "dvc.lock", "reports")
    copy.run("git", "restore", *restored)
    copy.dvc("checkout")
    assert copy.run("git", "status", "--porcelain") == "" and "up to date" in copy.dvc("status")
    copy.dvc("exp", "apply", "faster")
    assert "lr: 0.01" in copy.read("composed.yaml") and "up to date" in copy.dvc("status")


def test_stages_are_run_by_force(copy: Workspace) -> None:
    said = copy.dvc("repro", "--force", "--single-item", "download")
    assert stages_that(said, "ran") == ["download"]
    assert "preprocess" in stages_that(copy.dvc("repro", "-f", "preprocess"), "ran")


def test_a_cleared_cache_keeps_what_the_workspace_needs(copy: Workspace) -> None:
    copy.dvc("gc", "--workspace", "--force")
    assert "up to date" in copy.dvc("status")
    copy.dvc("checkout", "--force")
    assert stages_that(copy.dvc("repro"), "ran") == []


def test_help_lists_the_options(clone: Workspace) -> None:
    said = clone.train("--help")
    assert "optimizer: adam, adamw, " in said and "loss: " in said
