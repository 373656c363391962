"""Published results are the newest committed ones, if there are any."""

import json
from pathlib import Path

import pytest
from repositories import git, leave_repositories

from cifar_pipeline.tracking.provenance import published_results

METRICS = {"test": {"accuracy": 0.6105}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a project in a subfolder of where a repository may be, without a repository."""
    leave_repositories(monkeypatch, tmp_path)
    project = tmp_path / "projects" / "images"
    (project / "reports").mkdir(parents=True)
    monkeypatch.chdir(project)
    return project


def commit_results(folder: Path, metrics: str, params: str) -> str:
    (folder / "reports" / "metrics.json").write_text(metrics)
    (folder / "params.yaml").write_text(params)
    git("init", "--quiet", str(folder.parents[1]))
    git("add", "--all")
    git("commit", "--quiet", "--message", "results")
    return git("rev-parse", "--short", "HEAD")


def test_without_git_there_are_no_published_results(folder: Path) -> None:
    assert published_results() == {}


def test_published_results_are_the_newest_commits_and_not_the_working_trees(folder: Path) -> None:
    commit = commit_results(folder, json.dumps(METRICS), "experiment: tutorial\n")
    (folder / "README.md").write_text("another commit, which changes no result")
    git("add", "--all")
    git("commit", "--quiet", "--message", "text")
    (folder / "reports" / "metrics.json").write_text("{}")
    (folder / "params.yaml").write_text("experiment: mine\n")
    results = published_results()
    assert (results["commit"], results["experiment"], results["metrics"]) == (commit, "tutorial", METRICS)
    assert results["date"] == git("log", "-1", "--format=%cs")


def test_a_repository_without_results_publishes_none(folder: Path) -> None:
    (folder / "README.md").write_text("text")
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "text")
    assert published_results() == {}


@pytest.mark.parametrize("metrics", ["no json", "[]", ""])
def test_an_invalid_metrics_file_is_reported_as_an_error(folder: Path, metrics: str) -> None:
    commit_results(folder, metrics, "experiment: tutorial\n")
    results = published_results()
    assert "metrics" not in results and "the committed " in results["error"]


def test_removed_results_are_not_published(folder: Path) -> None:
    commit_results(folder, json.dumps(METRICS), "- no mapping\n")
    assert published_results()["experiment"] == ""
    git("rm", "--quiet", "reports/metrics.json")
    git("commit", "--quiet", "--message", "removed")
    assert published_results() == {}
