"""The id of a workspace: random, made once, and not shared by a copy."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cifar_pipeline.utils.paths import workspace_id
from helpers.source_tree import SRC

ASK = "from cifar_pipeline.utils.paths import workspace_id; print(workspace_id())"


def asked(*folders: Path) -> list[str]:
    """The id that a process in each of the folders gets, all at once."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ASK], cwd=folder, env={"PYTHONPATH": str(SRC)}, stdout=subprocess.PIPE, text=True
        )
        for folder in folders
    ]
    return [process.communicate()[0].strip() for process in processes]


def test_processes_that_ask_at_once_get_one_id(tmp_path):
    found = asked(*[tmp_path] * 4)
    assert len(set(found)) == 1 and len(found[0]) == 32


def test_a_copy_has_an_id_of_its_own_and_a_moved_workspace_keeps_its(tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    first = workspace_id()
    assert workspace_id() == first
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    copied = workspace_id()
    assert copied != first and workspace_id() == copied
    (tmp_path / "one").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    assert workspace_id() == first


def test_an_experiment_in_a_temporary_workspace_has_the_id_of_the_main_one(tmp_path, monkeypatch):
    for name in ("main", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "main")
    first = workspace_id()
    monkeypatch.chdir(tmp_path / "temporary")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    assert workspace_id() == first


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"id": "x"}'])
def test_a_damaged_file_is_made_anew(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    Path(".cache").mkdir()
    Path(".cache/workspace-id").write_text(content, encoding="utf-8")
    assert len(workspace_id()) == 32
