"""DVC's site cache is private after `make setup`: it contains pickles, which DVC loads."""

import os
import pickle
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.source_tree import ROOT

Shell = Callable[[str], None]


class Planted:
    """Creates the file `ran` when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch ran",)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A shell in a new DVC repository with one stage; the shared folder of this machine is `shared`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    home = tmp_path / "home"
    home.mkdir()
    # DVC's default is /var/tmp/dvc; here the system configuration sets another one, which the workspace's overrides.
    (tmp_path / "config").write_text(f"[core]\n    site_cache_dir = {tmp_path / 'shared'}\n")
    environment = {"PATH": path, "HOME": str(home), "DVC_SYSTEM_CONFIG_DIR": str(tmp_path), "DVC_NO_ANALYTICS": "1"}

    def run(command: str) -> None:
        subprocess.run(["bash", "-ec", command], cwd=tmp_path / "repository", env=environment, check=True)

    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "dvc.yaml").write_text("stages: {copy: {cmd: cp in out, deps: [in], outs: [out]}}\n")
    run("dvc init --quiet --no-scm && echo 1 > in && dvc repro --quiet")
    return run


def setting() -> str:
    """Return the commands of the Makefile that make the folder private."""
    match = re.search(r"^PRIVATE_SITE_CACHE := ((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert match
    return match[1]


def plant(cache: Path) -> None:
    with sqlite3.connect(cache) as database:
        database.execute(
            "insert into Cache (key, raw, store_time, access_time, access_count, size, mode, value)"
            " values (?, 0, 0, 0, 0, 0, 4, ?)",
            (pickle.dumps(Planted()), pickle.dumps(Planted())),
        )
    database.close()


def test_a_pickle_planted_in_the_shared_folder_is_not_loaded(shell: Shell, tmp_path: Path) -> None:
    (cache,) = (tmp_path / "shared").rglob("links/cache.db")
    plant(cache)
    shell(setting())
    shell("dvc checkout --quiet")
    assert not (tmp_path / "repository" / "ran").exists()
    private = tmp_path / "home" / ".cache" / "dvc-site"
    assert private.stat().st_mode & 0o777 == 0o700
    assert list(private.rglob("links/cache.db"))
    assert "@$(PRIVATE_SITE_CACHE)" in (ROOT / "Makefile").read_text()


def test_without_the_setting_dvc_loads_it(shell: Shell, tmp_path: Path) -> None:
    (cache,) = (tmp_path / "shared").rglob("links/cache.db")
    plant(cache)
    with pytest.raises(subprocess.CalledProcessError):
        shell("dvc checkout --quiet")
    assert (tmp_path / "repository" / "ran").exists()
