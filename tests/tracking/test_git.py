"""Missing and failing git are distinguished, and no setting, hook or byte changes a run's tags about its code."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from repositories import git, leave_repositories

from cifar_pipeline.tracking import provenance
from cifar_pipeline.tracking.model_uri import resolve_model
from cifar_pipeline.utils import git as git_module
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.git import Kind, find_repository

# Variable with which git's own tests simulate a repository of another user.
OTHER_OWNER = "GIT_TEST_ASSUME_DIFFERENT_OWNER"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a project in a subfolder of where a repository may be, without a repository."""
    leave_repositories(monkeypatch, tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    git_module._warned.clear()
    project = tmp_path / "mono" / "projects" / "images"
    for name in ("src/train.py", "conf/config.yaml", "reports/metrics.json"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text('{"test": 1}\n')
    monkeypatch.chdir(project)
    yield project


@pytest.fixture
def repository(folder: Path) -> Path:
    git("init", "--quiet", str(folder.parents[1]))
    commit_all()
    return folder


def commit_all() -> None:
    git("add", "--all")
    git("commit", "--quiet", "--message", "all")


def test_a_repository_of_another_user_is_reported_as_an_error(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(OTHER_OWNER, "1")
    tags = [provenance.tags() for _ in range(2)][1]
    assert "git.commit" not in tags and "git.dirty" not in tags
    assert tags["git.error"].startswith("detected dubious ownership in repository at")
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "the commit and uncommitted changes are not recorded" in printed
    assert f"git config --global --add safe.directory {repository.parents[1]}" in printed


def test_each_reason_without_a_commit_is_distinguished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (find_repository().kind, find_repository().error) == (Kind.OUTSIDE, "")
    git("init", "--quiet")
    assert (find_repository().kind, provenance.tags()["git.error"]) == (Kind.EMPTY, "no commit yet")
    commit_all()
    assert find_repository().kind is Kind.FOUND and "git.error" not in provenance.tags()
    (folder / ".git" / "HEAD").unlink()
    assert find_repository().kind is Kind.REFUSED and "not a git repository" in provenance.tags()["git.error"]
    monkeypatch.setenv("PATH", str(folder))
    assert provenance.tags()["git.error"] == "git is not installed"


def test_a_damaged_commit_is_not_reported_as_a_clean_tree(repository: Path) -> None:
    (tree,) = git("rev-parse", "HEAD^{tree}").split()
    (repository.parents[1] / ".git" / "objects" / tree[:2] / tree[2:]).unlink()
    tags = provenance.tags()
    assert "git.commit" in tags and "git.dirty" not in tags and "bad tree object" in tags["git.error"]


def test_a_project_below_the_top_of_its_repository_has_a_commit(repository: Path) -> None:
    assert provenance.tags()["git.commit"] == git("rev-parse", "HEAD")
    (repository.parents[1] / "other").mkdir()
    (repository.parents[1] / "other" / "src.py").write_text("not in this project\n")
    assert provenance.tags()["git.dirty"] == "false"
    (repository / "src" / "train.py").write_text("edited\n")
    assert b"+++ b/projects/images/src/train.py" in provenance.diff()


def test_a_worktree_and_a_repository_that_ignores_the_folder(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git("worktree", "add", "--quiet", str(repository.parents[2] / "second"))
    monkeypatch.chdir(repository.parents[2] / "second" / "projects" / "images")
    assert provenance.tags()["git.dirty"] == "false"
    shutil.copytree(repository, repository.parents[1] / "ignored" / "project")
    (repository.parents[1] / ".gitignore").write_text("/ignored/\n")
    monkeypatch.chdir(repository.parents[1] / "ignored" / "project")
    assert "git.commit" not in provenance.tags()


def test_bytes_that_are_not_utf_8_are_kept_unchanged(repository: Path) -> None:
    (repository / "src" / "train.py").write_bytes(b"# caf\xe9\n")
    (repository / "src" / "new.py").write_bytes(b"# na\xefve\n")
    (repository / "conf").rename(os.fsdecode(os.fsencode(repository) + b"/src/conf\xff"))
    assert provenance.tags()["git.dirty"] == "true"
    patch = provenance.diff()
    assert b"+# caf\xe9\n" in patch and b"+# na\xefve\n" in patch
    # The patch restores the same tree from the commit.
    git("stash", "--quiet", "--include-untracked")
    subprocess.run(["git", "apply", "-"], input=patch, check=True)
    assert (repository / "src" / "train.py").read_bytes() == b"# caf\xe9\n"
    assert (repository / "src" / "new.py").read_bytes() == b"# na\xefve\n"


def test_a_large_difference_is_cut_and_a_binary_file_is_named(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git_module, "MAX_DIFF_BYTES", 100_000)
    (repository / "src" / "weights.bin").write_bytes(bytes(1_000_000))
    assert provenance.diff() == b"New file: src/weights.bin\n"
    git("add", "--all")
    assert b"Binary files" in provenance.diff() and len(provenance.diff()) < 1000
    (repository / "src" / "train.py").write_text("x = 1\n" * 100_000)
    patch = provenance.diff()
    assert len(patch) < 101_000 and b"cut here" in patch


def test_neither_settings_nor_hooks_change_the_tags(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "src" / "train.py").write_text("edited\n")
    commit, patch = provenance.tags()["git.commit"], provenance.diff()
    trap = repository.parents[2] / "trap"
    trap.write_text("#!/bin/sh\ntouch trapped\necho trapped\n")
    trap.chmod(0o755)
    for setting in (
        "diff.external", "diff.python.textconv", "diff.python.command", "core.pager", "pager.diff", "core.fsmonitor",
    ):  # fmt: skip
        git("config", setting, str(trap))
    for setting, value in {
        "color.ui": "always", "diff.noprefix": "true", "diff.relative": "true", "diff.context": "0",
        "diff.mnemonicPrefix": "true", "log.showSignature": "true", "log.follow": "true",
    }.items():  # fmt: skip
        git("config", setting, value)
    (repository.parents[1] / ".git" / "info").mkdir(exist_ok=True)
    (repository.parents[1] / ".git" / "info" / "attributes").write_text("*.py diff=python\n*.json diff=python\n")
    other = repository.parents[2] / "other"
    git("init", "--quiet", str(other))
    for variable, value in {
        "GIT_DIR": str(other / ".git"), "GIT_WORK_TREE": str(other), "GIT_INDEX_FILE": str(other / "index"),
        "GIT_EXTERNAL_DIFF": str(trap), "GIT_PAGER": str(trap), "LC_ALL": "de_DE.UTF-8", "LANGUAGE": "de",
    }.items():  # fmt: skip
        monkeypatch.setenv(variable, value)
    assert provenance.tags()["git.commit"] == commit and provenance.diff() == patch
    assert not list(repository.parents[2].rglob("trapped"))


@pytest.mark.parametrize("content", ["stages: {download: [", "- none\n", "stages: 3", b"\xff"])
def test_a_damaged_lock_file_of_dvc_is_reported_as_an_error(
    folder: Path, content: str | bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "dvc.lock").write_bytes(content if isinstance(content, bytes) else content.encode())
    tags = provenance.tags()
    assert "dvc.data" not in tags and "\n" not in tags["dvc.error"] and tags["dvc.error"]
    assert provenance.dvc_hash("train", "models") == ""
    assert "dvc.lock has no hash of models" in capsys.readouterr().err


def test_bytes_of_the_command_line_that_are_not_utf_8_are_escaped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["src/train.py", os.fsdecode(b"data.root=/caf\xe9")])
    assert provenance.tags()["command"].encode() == rb"python src/train.py 'data.root=/caf\xe9'"


def test_a_revision_of_a_project_below_the_top_of_its_repository_has_its_model(repository: Path) -> None:
    (repository / "models" / "last").mkdir(parents=True)
    (repository / "models" / "last" / "MLmodel").write_text("metadata: kept\n")
    for arguments in (["init", "--subdir", "--quiet"], ["add", "--quiet", "models"]):
        subprocess.run([sys.executable, "-m", "dvc", *arguments], check=True)
    commit_all()
    shutil.rmtree("models")
    with resolve_model("models", "HEAD", "last") as folder:
        assert (folder / "MLmodel").read_text() == "metadata: kept\n"
    with pytest.raises(UserError, match="There is no revision v9"), resolve_model("models", "v9", "last"):
        pass
