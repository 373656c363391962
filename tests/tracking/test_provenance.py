"""Where a run came from: the commit, what differs from it, DVC's hash, the command; what is not there is left out."""

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


def test_outside_of_git_and_dvc_their_facts_are_left_out(folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["src/train.py", "optimizer=adam", "data.title=two words"])
    tags = provenance.tags()
    assert not [key for key in tags if key.startswith(("git.", "dvc."))]
    assert tags["command"] == "python src/train.py optimizer=adam 'data.title=two words'"
    assert tags["python"] == sys.version.split()[0]
    assert tags.keys() >= {f"version.{package}" for package in provenance.VERSIONED_PACKAGES}
    assert provenance.diff() == b""


def test_without_git_installed_its_facts_are_left_out(folder, monkeypatch):
    monkeypatch.setenv("PATH", str(folder))
    assert "git.commit" not in provenance.tags()


def test_a_repository_without_a_commit_is_no_error(folder):
    git("init", "--quiet")
    assert "git.commit" not in provenance.tags()


def test_a_clean_tree_says_its_commit(repository):
    tags = provenance.tags()
    assert (tags["git.commit"], tags["git.dirty"]) == (git("rev-parse", "HEAD"), "false")


def test_only_code_and_configuration_make_it_dirty(repository):
    (repository / "README.md").write_text("another\n")
    (repository / "params.yaml").write_text("seed: 0\n")
    assert provenance.tags()["git.dirty"] == "false"
    (repository / "conf" / "config.yaml").write_text("edited\n")
    assert provenance.tags()["git.dirty"] == "true"
    assert b"-as committed\n+edited" in provenance.diff() and b"README" not in provenance.diff()


def test_a_new_file_is_named_in_what_differs(repository):
    (repository / "src" / "mine.py").write_text("SECRET_OF_SUCCESS = 1\n")
    assert provenance.tags()["git.dirty"] == "true"
    assert b"src/mine.py" in provenance.diff()


def test_a_run_names_its_experiment_of_dvc_and_the_datas_hash(folder, monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "votes")
    (folder / "dvc.lock").write_text("stages: {download: {outs: [{path: data/raw, md5: 12ab.dir}]}}\n")
    tags = provenance.tags()
    assert (tags["dvc.experiment"], tags["dvc.data"]) == ("votes", "12ab.dir")
    (folder / "dvc.lock").write_text("")
    assert "dvc.data" not in provenance.tags()


def test_what_was_noted_at_the_start_stays_for_the_process(repository, monkeypatch):
    monkeypatch.setattr(provenance, "_recorded", {})
    provenance.record_commit()
    before = provenance.commit()
    (repository / "src" / "train.py").write_text("edited\n")
    git("commit", "--quiet", "--all", "--message", "made while it runs")
    (repository / "conf" / "config.yaml").write_text("edited\n")
    tags = provenance.tags()
    assert provenance.commit() == before == tags["git.commit"]
    assert provenance.diff() == b"" and tags["git.dirty"] == "false"
