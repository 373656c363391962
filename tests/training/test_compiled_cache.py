"""The cache of compiled code is private to the user, and separate for each processor and compiler."""

import getpass
import hashlib
import os
import platform
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cifar_pipeline.training.compiled import small_conv as module
from cifar_pipeline.training.compiled.small_conv import (
    CACHE_VARIABLE,
    COMPILER_FLAGS,
    SOURCE,
    compiled_cache,
    machine_key,
)
from helpers.source_tree import SRC

BUILD = f"""
import sys; sys.path.insert(0, {str(SRC)!r})
from cifar_pipeline.training.compiled.small_conv import load_ops
load_ops()
from torch._inductor.runtime.cache_dir_utils import cache_dir
print(cache_dir())
"""


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A workspace without a cache, with the environment variables unset."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CACHE_VARIABLE, "")
    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    compiled_cache.cache_clear()
    yield tmp_path
    compiled_cache.cache_clear()


@pytest.mark.long
def test_a_library_planted_in_the_shared_temporary_folder_is_not_loaded(tmp_path: Path) -> None:
    shared, workspace = tmp_path / "tmp", tmp_path / "workspace"
    planted = shared / f"torchinductor_{getpass.getuser()}"
    planted.mkdir(parents=True)
    workspace.mkdir()
    shared.chmod(0o1777)
    planted.chmod(0o777)
    # A predictable name, and content that cannot be loaded.
    content = SOURCE.read_bytes() + repr((COMPILER_FLAGS, torch.__version__, platform.node())).encode()
    name = planted / f"small_convolutions_{hashlib.sha256(content).hexdigest()[:16]}.so"
    name.write_bytes(b"code from elsewhere")
    environment = {key: value for key, value in os.environ.items() if key not in (CACHE_VARIABLE, "DVC_ROOT")}
    completed = subprocess.run(
        [sys.executable, "-c", BUILD],
        cwd=workspace,
        env=environment | {"TMPDIR": str(shared)},
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stderr
    folder = Path(completed.stdout.strip())
    assert folder.parent == workspace / ".cache" / "compiled"
    assert list(folder.glob("small_convolutions_*.so"))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(planted.iterdir()) == [name]


def test_a_folder_that_others_may_write_to_is_recreated(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = compiled_cache()
    (folder / "planted.so").touch()
    folder.chmod(0o777)
    compiled_cache.cache_clear()
    os.environ[CACHE_VARIABLE] = ""
    assert compiled_cache() == folder
    assert list(folder.iterdir()) == []
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert "was not private to this user" in " ".join(capsys.readouterr().err.split())


def test_a_link_as_cache_folder_is_not_followed(fresh: Path) -> None:
    elsewhere = fresh / "elsewhere"
    elsewhere.mkdir(0o700)
    parent = fresh / ".cache" / "compiled"
    parent.mkdir(0o700, parents=True)
    (parent / machine_key()).symlink_to(elsewhere)
    folder = compiled_cache()
    assert not folder.is_symlink() and folder.is_dir()


def test_the_folder_of_the_environment_variable_is_used_if_it_is_private(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(fresh / "mine"))
    assert compiled_cache() == fresh / "mine"
    compiled_cache.cache_clear()
    (fresh / "mine").chmod(0o777)
    assert compiled_cache().parent == fresh / ".cache" / "compiled"


def test_without_a_writable_workspace_a_temporary_folder_is_used(
    fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (fresh / ".cache").write_text("a file in the way, as a read-only disk would be")
    folder = compiled_cache()
    assert fresh not in folder.parents and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert "using a temporary directory" in " ".join(capsys.readouterr().err.split())


def test_the_cache_key_depends_on_processor_and_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {machine_key()}
    monkeypatch.setattr(module, "_processor", lambda: "flags : avx2")
    keys.add(machine_key())
    monkeypatch.setattr(module, "_compiler", lambda: "g++ 99")
    keys.add(machine_key())
    assert len(keys) == 3
    monkeypatch.setattr(platform, "node", lambda: "another host")
    assert machine_key() in keys
