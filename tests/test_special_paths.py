"""Writing to links, streams, devices and mount points, which are real ones in separate namespaces."""

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cifar_pipeline.utils import atomic
from cifar_pipeline.utils.atomic import (
    atomic_replace_dir,
    atomic_update_dir,
    atomic_write,
    exclusive_lock,
    require_writable,
)
from cifar_pipeline.utils.errors import UserError
from helpers.dir_snapshot import content_of
from helpers.mounts import OWN_MOUNTS, needs_mounts
from helpers.source_tree import SRC


def python(code: str, folder: Path, *before: str, **options) -> subprocess.CompletedProcess[str]:
    """Run code that may use `utils.atomic` in a separate process in `folder`."""
    source = f"from pathlib import Path\nfrom cifar_pipeline.utils.atomic import *\n{code}"
    environment = {"PYTHONPATH": str(SRC), "PATH": os.environ["PATH"]}
    command = [*before, sys.executable, "-c", source]
    return subprocess.run(command, cwd=folder, env=environment, text=True, timeout=60, **options)


def python_behind(mount: str, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code after a command that mounts something in a separate namespace."""
    shell = (*OWN_MOUNTS, "sh", "-c", f'{mount} && exec "$@"', "sh")
    return python(code, folder, *shell, capture_output=True)


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    large = tmp_path / "large disk"
    large.mkdir()
    for name in ("models", "reports", "table.csv"):
        (tmp_path / name).symlink_to(large / name)  # dangling at first
    for content in ("old", "new"):
        for path in (tmp_path / "models", tmp_path / "reports"):
            require_writable(path)
        require_writable(tmp_path / "table.csv", is_file=True)
        with exclusive_lock(tmp_path / "models"), atomic_replace_dir(tmp_path / "models") as tmp:
            (tmp / "weights").write_text(content)
        with atomic_update_dir(tmp_path / "reports") as tmp:
            (tmp / "metrics").write_text(content)
        with atomic_write(tmp_path / "table.csv") as tmp:
            tmp.write_text(content)
        assert all((tmp_path / name).is_symlink() for name in ("models", "reports", "table.csv"))
        written = {name: text for name, text in content_of(large).items() if not name.endswith(".lock")}
        assert written == {name: content.encode() for name in ("models/weights", "reports/metrics", "table.csv")}


def test_a_link_into_dvcs_cache_is_replaced_and_the_cache_left_alone(tmp_path):
    cached = tmp_path / "cache" / "files" / "md5" / "ab" / ("c" * 30)
    cached.parent.mkdir(parents=True)
    cached.write_text("an older result")
    (tmp_path / "samples.png").symlink_to(cached)
    with atomic_write(tmp_path / "samples.png") as tmp:
        tmp.write_text("new")
    assert (tmp_path / "samples.png").read_text() == "new" and cached.read_text() == "an older result"


def test_a_link_to_itself_is_refused_before_any_work(tmp_path):
    (tmp_path / "models").symlink_to("models")
    with pytest.raises(UserError, match="is a symbolic link to itself"):
        require_writable(tmp_path / "models")


def test_what_is_in_the_way_is_refused_before_any_work(tmp_path):
    (tmp_path / "models").write_text("")
    with pytest.raises(UserError, match="is a file, but a folder will be written there"):
        require_writable(tmp_path / "models")
    with pytest.raises(UserError, match="is not a folder"):
        require_writable(tmp_path / "models" / "deep")
    with pytest.raises(UserError, match="is a folder, but a file will be written there"):
        require_writable(tmp_path, is_file=True)
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no FIFOs")
def test_a_fifo_receives_the_content_and_stays(tmp_path):
    fifo, received = tmp_path / "predictions", []
    os.mkfifo(fifo)
    require_writable(fifo, is_file=True)
    reader = threading.Thread(target=lambda: received.append(fifo.read_text()))
    reader.start()
    with atomic_write(fifo) as tmp:
        tmp.write_text("file,class\n")
    reader.join(10)
    assert received == ["file,class\n"] and stat.S_ISFIFO(fifo.stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions"]


@pytest.mark.parametrize("linked", [False, True])
def test_a_device_stays_a_device(tmp_path, linked):
    device = path = tmp_path / "null"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        device.write_text("")
    except (OSError, AttributeError):
        pytest.skip("only root makes devices, and not in every container")
    if linked:
        path = tmp_path / "link"
        path.symlink_to(device)
    require_writable(path, is_file=True)
    with atomic_write(path) as tmp:
        tmp.write_text("file,class\n")
    assert stat.S_ISCHR(device.stat().st_mode)


def test_standard_output_is_appended_to(tmp_path):
    (tmp_path / "all.csv").write_text("before\n")
    with (tmp_path / "all.csv").open("a") as out:
        code = "print('first')\nwith atomic_write(Path('/dev/stdout')) as tmp: tmp.write_text('second\\n')"
        assert python(code, tmp_path, stdout=out).returncode == 0
    assert (tmp_path / "all.csv").read_text() == "before\nfirst\nsecond\n"


@needs_mounts
@pytest.mark.parametrize("mounted", ["another file system", "a folder of the same one"])
def test_a_mounted_folder_stays_and_gets_the_new_content(tmp_path, mounted):
    (tmp_path / "models").mkdir()
    (tmp_path / "elsewhere").mkdir()
    mount = {
        "another file system": "mount -t tmpfs none models",
        "a folder of the same one": "mount --bind elsewhere models",
    }[mounted]
    code = """
def fill(content):
    for folder in ("models", "models/deep"):
        require_writable(Path(folder))
    with exclusive_lock(Path("models")), atomic_replace_dir(Path("models")) as tmp:
        (tmp / content).mkdir()
        (tmp / content / "weights").write_text(content)
        (tmp / "metadata").write_text(content)
for content in ("old", "new"):
    fill(content)
with atomic_update_dir(Path("models")) as tmp:
    (tmp / "metadata").write_text("newer")
print(sorted(str(path) for path in Path("models").rglob("*")), Path("models/metadata").read_text())
print(sorted(path.name for path in Path().iterdir()))
"""
    ended = python_behind(mount, code, tmp_path)
    assert ended.stdout.splitlines() == [
        "['models/metadata', 'models/new', 'models/new/weights'] newer",
        "['.models.lock', 'elsewhere', 'models']",
    ], ended.stderr


@needs_mounts
def test_a_mounted_file_and_a_mount_within_are_refused_before_any_work(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_text("")
    (tmp_path / "models" / "last").mkdir(parents=True)
    code = (
        "for path, is_file in ((Path('one'), True), (Path('models'), False)):\n"
        "    try: require_writable(path, is_file)\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    ended = python_behind("mount --bind two one && mount -t tmpfs none models/last", code, tmp_path)
    first, second = ended.stdout.splitlines()
    assert first.startswith("UserError") and "mount its folder instead" in first
    assert second.startswith("UserError") and "models/last in it is a mount point" in second


@pytest.mark.parametrize("number", sorted(atomic.MOUNT_POINT_ERRNOS))
def test_a_folder_that_can_not_be_renamed_gets_the_new_content(tmp_path, monkeypatch, number):
    """As in a container whose image contains the folder; the error is mocked."""

    def fail(new: Path, path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(atomic, "_swap_dirs", fail)
    for content in ("old", "new"):
        with atomic_replace_dir(tmp_path / "models") as tmp:
            (tmp / "last" / content).mkdir(parents=True)
            (tmp / "last" / "weights").write_text(content)
    assert content_of(tmp_path / "models") == {"last/weights": b"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_a_file_system_without_renames_is_refused_before_any_work(tmp_path, monkeypatch):
    def fail(new: Path, path: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    monkeypatch.setattr(atomic, "_swap", fail)
    with pytest.raises(UserError, match=r"does not allow renames, with which models is replaced"):
        require_writable(tmp_path / "models")
    assert not list(tmp_path.iterdir())
