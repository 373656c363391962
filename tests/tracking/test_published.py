"""What is compared with: the newest committed results, and none where there are none."""

import json
from pathlib import Path

import pytest
from repositories import git, leave_repositories

from cifar_pipeline.tracking.provenance import published_results

METRICS = {"test": {"accuracy": 0.6105}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that is one folder of a repository."""
    leave_repositories(monkeypatch, tmp_path)
    project = tmp_path / "projects" / "images"
    (project / "reports").mkdir(parents=True)
    monkeypatch.chdir(project)
    return project


def committed(folder: Path, metrics: str, params: str) -> str:
    (folder / "reports" / "metrics.json").write_text(metrics)
    (folder / "params.yaml").write_text(params)
    git("init", "--quiet", str(folder.parents[1]))
    git("add", "--all")
    git("commit", "--quiet", "--message", "results")
    return git("rev-parse", "--short", "HEAD")


def test_without_git_no_results_are_published(folder: Path) -> None:
    assert published_results() == {}


def test_the_newest_committed_results_and_not_those_of_the_working_tree(folder: Path) -> None:
    commit = committed(folder, json.dumps(METRICS), "experiment: tutorial\n")
    (folder / "README.md").write_text("another commit, which changes no result")
    git("add", "--all")
    git("commit", "--quiet", "--message", "words")
    (folder / "reports" / "metrics.json").write_text("{}")
    (folder / "params.yaml").write_text("experiment: mine\n")
    found = published_results()
    assert (found["commit"], found["experiment"], found["metrics"]) == (commit, "tutorial", METRICS)
    assert found["date"] == git("log", "-1", "--format=%cs")


def test_a_repository_without_results_publishes_none(folder: Path) -> None:
    (folder / "README.md").write_text("words")
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "words")
    assert published_results() == {}


@pytest.mark.parametrize("metrics", ["no json", "[]", ""])
def test_what_is_no_metrics_file_is_a_reason_and_no_absence(folder: Path, metrics: str) -> None:
    committed(folder, metrics, "experiment: tutorial\n")
    found = published_results()
    assert "metrics" not in found and "the committed " in found["error"]


def test_removed_results_are_published_no_more(folder: Path) -> None:
    committed(folder, json.dumps(METRICS), "- no mapping\n")
    assert published_results()["experiment"] == ""
    git("rm", "--quiet", "reports/metrics.json")
    git("commit", "--quiet", "--message", "removed")
    assert published_results() == {}
