"""Atomic replacement of files and folders, also when a writer is killed in between."""

import errno
import math
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cifar_pipeline.utils import atomic
from cifar_pipeline.utils.atomic import atomic_replace_dir, atomic_update_dir, atomic_write, exclusive_lock
from cifar_pipeline.utils.errors import EnvironmentFailure
from helpers.source_tree import SRC


def fill(folder: Path, content: str) -> None:
    with exclusive_lock(folder), atomic_replace_dir(folder) as new:
        (new / "deep").mkdir()
        (new / "deep" / "file").write_text(content)


def read(folder: Path) -> str:
    assert [path.name for path in folder.iterdir()] == ["deep"]
    return (folder / "deep" / "file").read_text()


def visible(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]


def test_new_content_replaces_old(tmp_path):
    for content in ("old", "new"):
        fill(tmp_path / "a folder", content)
        assert read(tmp_path / "a folder") == content
    assert visible(tmp_path) == ["a folder"]


def test_a_failure_leaves_the_old(tmp_path):
    fill(tmp_path / "x", "old")
    with pytest.raises(ZeroDivisionError), atomic_replace_dir(tmp_path / "x") as new:
        (new / "half").touch()
        raise ZeroDivisionError
    assert read(tmp_path / "x") == "old"
    assert {path.name for path in tmp_path.iterdir()} <= {"x", ".x.lock"}


def test_a_killed_process_leaves_the_old_and_the_next_clears_up(tmp_path):
    fill(tmp_path / "x", "old")
    code = (
        "import os; from pathlib import Path; from cifar_pipeline.utils.atomic import atomic_replace_dir\n"
        f"with atomic_replace_dir(Path({str(tmp_path / 'x')!r})) as new:\n"
        "    (new / 'half').touch(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(SRC)}).returncode == -9
    assert read(tmp_path / "x") == "old"
    fill(tmp_path / "x", "new")
    assert read(tmp_path / "x") == "new"
    assert {path.name for path in tmp_path.iterdir()} <= {"x", ".x.lock"}


def test_killed_between_the_two_renames_the_old_folder_comes_back(tmp_path):
    fill(tmp_path / "x", "old")
    (tmp_path / "x").rename(tmp_path / ".x.0123456789abcdef.old")
    with pytest.raises(ZeroDivisionError), atomic_replace_dir(tmp_path / "x"):
        raise ZeroDivisionError
    assert read(tmp_path / "x") == "old"


needs_one_step = pytest.mark.skipif(
    sys.platform not in atomic.EXCHANGE_SYSCALLS, reason="this system exchanges by renames"
)


@needs_one_step
def test_the_folder_is_there_at_every_moment(tmp_path):
    fill(tmp_path / "x", "0")
    replacing = threading.Thread(target=lambda: [fill(tmp_path / "x", str(number)) for number in range(1, 50)])
    replacing.start()
    checks = 0
    while replacing.is_alive():
        (tmp_path / "x").stat()
        checks += 1
    assert checks > 100 and read(tmp_path / "x") == "49"


@pytest.mark.parametrize("system", ["this one", "one without an exchange", "a mounted folder"])
def test_files_are_replaced_and_other_files_are_kept(tmp_path, monkeypatch, system):
    folder = tmp_path / "reports"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").write_text("unrelated")
    (folder / "a").symlink_to("deep/file")
    if system == "one without an exchange":
        monkeypatch.setattr(atomic, "EXCHANGE_SYSCALLS", {})
    elif system == "a mounted folder":

        def busy(new: Path, path: Path) -> None:
            raise OSError(errno.EBUSY, "Device or resource busy", str(path))

        monkeypatch.setattr(atomic, "_swap_dirs", busy)
    for content in ("old", "new"):
        with atomic_update_dir(folder) as tmp:
            for name in ("a", "b"):
                (tmp / name).write_text(content)
        assert (folder / "deep" / "file").read_text() == "unrelated"
        assert {path.name: path.read_text() for path in folder.iterdir() if path.is_file()} == {
            "a": content,
            "b": content,
        }
    assert [path.name for path in tmp_path.iterdir()] == ["reports"]


def test_files_change_together_or_not_at_all(tmp_path):
    folder = tmp_path / "reports"
    with atomic_update_dir(folder) as tmp:
        (tmp / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_update_dir(folder) as tmp:
        (tmp / "a").write_text("new")
        raise RuntimeError
    assert [(path.name, path.read_text()) for path in tmp_path.rglob("*") if path.is_file()] == [("a", "old")]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="file descriptors have names on Linux only")
def test_content_is_synced_to_disk_before_it_is_renamed(tmp_path, monkeypatch):
    """Otherwise a power cut could leave an empty file under the new name."""
    done = []
    sync, replace, exchange = os.fsync, Path.replace, atomic._swap_dirs

    def name(handle: int) -> str:
        return Path(f"/proc/self/fd/{handle}").readlink().name

    monkeypatch.setattr(os, "fsync", lambda handle: (done.append(f"sync {name(handle)}"), sync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (done.append("replace"), replace(self, to))[1])
    monkeypatch.setattr(atomic, "_swap_dirs", lambda new, path: (done.append("exchange"), exchange(new, path))[1])
    with atomic_write(tmp_path / "file") as tmp:
        tmp.write_text("new")
    assert done == [f"sync {tmp.name}", "replace", f"sync {tmp_path.name}"]
    fill(tmp_path / "x", "old")
    done.clear()
    fill(tmp_path / "x", "new")
    assert re.sub("x.[0-9a-f]{16}", "x", str(done)) == str(
        ["sync deep", "sync file", "sync .x.part", "exchange", f"sync {tmp_path.name}"]
    )


def test_a_second_writer_waits(tmp_path, capsys):
    with exclusive_lock(tmp_path / "x"), atomic_replace_dir(tmp_path / "x") as new:
        second = threading.Thread(target=fill, args=(tmp_path / "x", "second"))
        second.start()
        time.sleep(0.2)
        assert second.is_alive()
        (new / "first").touch()
    second.join(10)
    assert read(tmp_path / "x") == "second"
    assert "waiting" in capsys.readouterr().out


class OpenOnWindows:
    """`Path.replace` as on Windows, where another program has the path open for the first calls."""

    def __init__(self, calls: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left, self.replace = calls, Path.replace
        monkeypatch.setattr(atomic, "RENAMES_OPEN_PATHS", False)
        monkeypatch.setattr(atomic, "EXCHANGE_SYSCALLS", {})
        monkeypatch.setattr(Path, "replace", lambda path, target: self(path, target))

    def __call__(self, path: Path, target: Path) -> Path:
        if self.left > 0:
            self.left -= 1
            raise PermissionError(errno.EACCES, "The process cannot access the file", str(path))
        return self.replace(path, target)


def test_on_windows_a_rename_waits_for_another_program(tmp_path, monkeypatch):
    fill(tmp_path / "x", "old")
    monkeypatch.setattr(atomic, "RENAME_INTERVAL", 0)
    program = OpenOnWindows(3, monkeypatch)
    fill(tmp_path / "x", "new")
    assert read(tmp_path / "x") == "new" and program.left == 0
    program.left = 2
    with atomic_write(tmp_path / "file") as tmp:
        tmp.write_text("new")
    assert (tmp_path / "file").read_text() == "new" and program.left == 0


def test_on_windows_a_path_that_stays_open_keeps_its_content(tmp_path, monkeypatch):
    fill(tmp_path / "x", "old")
    monkeypatch.setattr(atomic, "RENAME_SECONDS", 0.05)
    program = OpenOnWindows(math.inf, monkeypatch)
    with pytest.raises(EnvironmentFailure, match="cannot be replaced while another program has it open: close"):
        fill(tmp_path / "x", "new")
    program.left = 0
    assert read(tmp_path / "x") == "old" and visible(tmp_path) == ["x"]


def test_elsewhere_a_missing_permission_is_told_at_once(tmp_path, monkeypatch):
    OpenOnWindows(math.inf, monkeypatch)
    monkeypatch.setattr(atomic, "RENAMES_OPEN_PATHS", True)
    with pytest.raises(PermissionError), atomic_write(tmp_path / "file") as tmp:
        tmp.touch()
