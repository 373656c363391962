"""This project as a repository to clone, and a clone of it that was adopted as flowers."""

import shutil
import subprocess
from pathlib import Path

import pytest
from clones import NAME, Adopted, Repository

from adopt import adopt
from helpers.config_project import run
from helpers.workspace import ROOT, Workspace


@pytest.fixture(autouse=True)
def without_global_git_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A repository with what git would commit of the working tree."""
    root = tmp_path_factory.mktemp("upstream") / "cifar-pipeline"
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() or (ROOT / name).is_symlink():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name, follow_symlinks=False)
    Workspace(root).run("git", "init", "--quiet", "--initial-branch=main")
    repository = Repository.at(root)
    repository.commit_all("Publish")
    return repository


@pytest.fixture(scope="session")
def adopted(upstream: Repository, tmp_path_factory: pytest.TempPathFactory) -> Adopted:
    repository = upstream.clone(tmp_path_factory.mktemp("adopted") / NAME)
    before = repository.state()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository.root)
        dry_run = run(adopt, NAME, "--dry-run")
        assert not dry_run.code and repository.state() == before, dry_run.err
        ended = run(adopt, NAME)
    assert not ended.code, ended.err
    return Adopted(repository, dry_run.out, ended.out)


@pytest.fixture
def clone(upstream: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A clone of the project, which is the working directory."""
    repository = upstream.clone(tmp_path / "clone")
    monkeypatch.chdir(repository.root)
    return repository


@pytest.fixture
def project(adopted: Adopted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A clone of the adopted project, which is the working directory."""
    repository = adopted.repository.clone(tmp_path / "project")
    repository.git("remote", "remove", "origin")
    monkeypatch.chdir(repository.root)
    return repository
