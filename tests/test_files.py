"""Replacing a folder whole, whatever happens in between."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cifar_pipeline import files
from cifar_pipeline.files import only_one, whole_folder


def fill(folder: Path, content: str) -> None:
    with only_one(folder), whole_folder(folder) as new:
        (new / "deep").mkdir()
        (new / "deep" / "file").write_text(content)


def read(folder: Path) -> str:
    assert [path.name for path in folder.iterdir()] == ["deep"]
    return (folder / "deep" / "file").read_text()


def visible(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]


def test_new_content_takes_the_place_of_old(tmp_path):
    for content in ("old", "new"):
        fill(tmp_path / "a folder", content)
        assert read(tmp_path / "a folder") == content
    assert visible(tmp_path) == ["a folder"]


def test_a_failure_leaves_the_old(tmp_path):
    fill(tmp_path / "x", "old")
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "x") as new:
        (new / "half").touch()
        raise ZeroDivisionError
    assert read(tmp_path / "x") == "old"
    assert {path.name for path in tmp_path.iterdir()} <= {"x", ".x.lock"}


def test_a_killed_process_leaves_the_old_and_the_next_clears_up(tmp_path):
    fill(tmp_path / "x", "old")
    code = (
        "import os, sys; from pathlib import Path; from cifar_pipeline.files import only_one, whole_folder\n"
        f"with whole_folder(Path({str(tmp_path / 'x')!r})) as new:\n"
        "    (new / 'half').touch(); os.kill(os.getpid(), 9)"
    )
    source = str(Path(files.__file__).parents[1])
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": source}).returncode == -9
    assert read(tmp_path / "x") == "old"
    fill(tmp_path / "x", "new")
    assert read(tmp_path / "x") == "new"
    assert {path.name for path in tmp_path.iterdir()} <= {"x", ".x.lock"}


def test_killed_between_the_two_renames(tmp_path):
    fill(tmp_path / "x", "old")
    (tmp_path / "x").rename(tmp_path / ".x.old")
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "x"):
        raise ZeroDivisionError
    assert read(tmp_path / "x") == "old"


def test_a_second_writer_waits(tmp_path, capsys):
    with only_one(tmp_path / "x"), whole_folder(tmp_path / "x") as new:
        second = threading.Thread(target=fill, args=(tmp_path / "x", "second"))
        second.start()
        time.sleep(0.2)
        assert second.is_alive()
        (new / "first").touch()
    second.join(10)
    assert read(tmp_path / "x") == "second"
    assert "waiting" in capsys.readouterr().out
