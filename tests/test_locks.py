"""Concurrent writers of one path: each has its own temporary file, and none removes that of a live writer."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cifar_pipeline.utils.atomic import atomic_replace_dir, atomic_update_dir, atomic_write
from helpers.source_tree import SRC

OWN_PID_NAMESPACE = ("unshare", "--map-root-user", "--pid", "--fork", "--mount-proc")
THREADS, TIMES = 8, 25


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def can_unshare_pids() -> bool:
    """Whether a process can have its own PID namespace here, as in a container."""
    try:
        return not subprocess.run([*OWN_PID_NAMESPACE, "true"], capture_output=True).returncode
    except OSError:
        return False


def test_threads_write_one_file_at_once_and_readers_see_complete_content(tmp_path):
    def write(number: int) -> None:
        for _ in range(TIMES):
            with atomic_write(tmp_path / "shard.npy") as tmp:
                tmp.write_text(str(number) * 1000)
            assert len(set((tmp_path / "shard.npy").read_text())) == 1

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(write, range(THREADS)))
    assert names(tmp_path) == ["shard.npy"]


@pytest.mark.parametrize("replace_dir", [atomic_replace_dir, atomic_update_dir])
def test_threads_replace_one_folder_at_once_and_readers_see_complete_content(tmp_path, replace_dir):
    def replace(number: int) -> None:
        for _ in range(TIMES // 5):
            with replace_dir(tmp_path / "reports") as tmp:
                (tmp / "one").write_text(str(number))
                (tmp / "two").write_text(str(number))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(replace, range(THREADS)))
    assert names(tmp_path) == ["reports"]
    assert (tmp_path / "reports" / "one").read_text() == (tmp_path / "reports" / "two").read_text()


WRITE = """
from pathlib import Path
from cifar_pipeline.utils.atomic import atomic_write
with atomic_write(Path("table.csv")) as tmp:
    tmp.write_text("other content")
"""


@pytest.mark.skipif(not can_unshare_pids(), reason="PID namespaces are not allowed here")
def test_a_writer_in_another_container_leaves_the_unfinished_file_of_a_live_one(tmp_path):
    with atomic_write(tmp_path / "table.csv") as tmp:
        tmp.write_text("mine")
        environment = {"PYTHONPATH": str(SRC), "PATH": os.environ["PATH"]}
        subprocess.run([*OWN_PID_NAMESPACE, sys.executable, "-c", WRITE], cwd=tmp_path, env=environment, check=True)
        assert (tmp_path / "table.csv").read_text() == "other content"
    assert (tmp_path / "table.csv").read_text() == "mine"
    assert names(tmp_path) == ["table.csv"]


def test_temporary_files_of_a_killed_writer_are_removed_by_the_next(tmp_path):
    code = WRITE.replace('"other content")', '"half"); import os; os.kill(os.getpid(), 9)')
    environment = {"PYTHONPATH": str(SRC), "PATH": os.environ["PATH"]}
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    assert killed.returncode == -9 and len(names(tmp_path)) == 2
    with atomic_write(tmp_path / "table.csv") as tmp:
        tmp.write_text("complete")
    assert names(tmp_path) == ["table.csv"]


def test_a_name_that_begins_like_another_is_a_different_one(tmp_path):
    """The hidden names of `x.y` are not those of `x`."""
    with atomic_write(tmp_path / "x.y") as tmp, atomic_write(tmp_path / "x") as other:
        tmp.write_text("1")
        other.write_text("2")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x.y": "1", "x": "2"}
