"""Sweeps that are begun in the same second: each has a folder of its own, known to all of its jobs."""

import shutil
from pathlib import Path

import pytest
from omegaconf import DictConfig

from cifar_pipeline.config.compose import output_root
from helpers.config_project import Project


@pytest.fixture
def small(project: Project, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose clock stands still."""
    shutil.copy(empty_database, project.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project.folder / 'mlflow.db'}")
    project.edit("conf/config.yaml", "dir: multirun/${now:%Y-%m-%d}/${now:%H-%M-%S}", "dir: multirun/it's 12-00-00")
    return project


def leave_a_file(config: DictConfig) -> None:
    output_root().mkdir(parents=True, exist_ok=True)
    (output_root() / "seed").write_text(str(config.seed))


def files() -> list[str]:
    return sorted(f"{path.relative_to('multirun')}={path.read_text()}" for path in Path("multirun").rglob("seed"))


def test_the_second_sweep_of_a_second_has_a_folder_of_its_own(small: Project) -> None:
    for seeds in ("1,2", "3,4"):
        ended = small.start(leave_a_file, "-m", f"seed={seeds}")
        assert ended.code == 0, ended.err
    first, second = "it's 12-00-00", "it's 12-00-00-2"
    assert set(files()) == {f"{first}/0/seed=1", f"{first}/1/seed=2", f"{second}/0/seed=3", f"{second}/1/seed=4"}


def test_a_folder_that_the_command_line_names_is_taken_as_it_is(small: Project) -> None:
    for seeds in ("1,2", "3,4"):
        ended = small.start(leave_a_file, "-m", f"seed={seeds}", "hydra.sweep.dir=multirun/mine")
        assert ended.code == 0, ended.err
    assert files() == ["mine/0/seed=3", "mine/1/seed=4"]


def test_a_sweep_that_is_refused_leaves_no_folder(small: Project) -> None:
    ended = small.start(leave_a_file, "-m", "seed=1,2", "launcher=slurm")
    assert ended.code == 2 and not list(small.folder.glob("multirun/*"))
