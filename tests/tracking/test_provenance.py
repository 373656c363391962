"""A run's provenance: commit, uncommitted changes, DVC's hash, command; what is missing is omitted."""

import sys

import pytest
from repositories import git, leave_repositories

from cifar_pipeline.tracking import provenance


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    leave_repositories(monkeypatch, tmp_path)
    return tmp_path


@pytest.fixture
def repository(folder):
    for name in ("src/train.py", "conf/config.yaml", "README.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("as committed\n")
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "all")
    return folder


def test_outside_of_git_and_dvc_their_tags_are_omitted(folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["src/train.py", "optimizer=adam", "data.title=two words"])
    tags = provenance.tags()
    assert not [key for key in tags if key.startswith(("git.", "dvc."))]
    assert tags["command"] == "python src/train.py optimizer=adam 'data.title=two words'"
    assert tags["python"] == sys.version.split()[0]
    assert tags.keys() >= {f"version.{package}" for package in provenance.VERSIONED_PACKAGES}
    assert provenance.diff() == b""


def test_without_git_its_tags_are_omitted(folder, monkeypatch):
    monkeypatch.setenv("PATH", str(folder))
    assert "git.commit" not in provenance.tags()


def test_a_repository_without_a_commit_is_no_error(folder):
    git("init", "--quiet")
    assert "git.commit" not in provenance.tags()


def test_a_clean_tree_is_tagged_with_its_commit(repository):
    tags = provenance.tags()
    assert (tags["git.commit"], tags["git.dirty"]) == (git("rev-parse", "HEAD"), "false")


def test_only_changes_of_code_and_configuration_make_it_dirty(repository):
    (repository / "README.md").write_text("another\n")
    (repository / "params.yaml").write_text("seed: 0\n")
    assert provenance.tags()["git.dirty"] == "false"
    (repository / "conf" / "config.yaml").write_text("edited\n")
    assert provenance.tags()["git.dirty"] == "true"
    assert b"-as committed\n+edited" in provenance.diff() and b"README" not in provenance.diff()


def test_the_diff_contains_new_files(repository):
    (repository / "src" / "mine.py").write_text("SECRET_OF_SUCCESS = 1\n")
    assert provenance.tags()["git.dirty"] == "true"
    assert b"src/mine.py" in provenance.diff()


def test_a_run_is_tagged_with_its_dvc_experiment_and_the_hash_of_the_data(folder, monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "votes")
    (folder / "dvc.lock").write_text("stages: {download: {outs: [{path: data/raw, md5: 12ab.dir}]}}\n")
    tags = provenance.tags()
    assert (tags["dvc.experiment"], tags["dvc.data"]) == ("votes", "12ab.dir")
    (folder / "dvc.lock").write_text("")
    assert "dvc.data" not in provenance.tags()


def test_what_was_recorded_at_the_start_is_used_by_the_process_until_its_end(repository, monkeypatch):
    monkeypatch.setattr(provenance, "_recorded", {})
    provenance.record_commit()
    before = provenance.commit()
    (repository / "src" / "train.py").write_text("edited\n")
    git("commit", "--quiet", "--all", "--message", "made while it runs")
    (repository / "conf" / "config.yaml").write_text("edited\n")
    tags = provenance.tags()
    assert provenance.commit() == before == tags["git.commit"]
    assert provenance.diff() == b"" and tags["git.dirty"] == "false"
