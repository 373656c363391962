"""Sweeps that start in the same second have different folders, which all of their jobs use."""

import shutil
from pathlib import Path

import pytest
from omegaconf import DictConfig

from cifar_pipeline.config.compose import output_root
from helpers.config_project import Project


@pytest.fixture
def small(project: Project, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Make a project whose sweeps all have the same time in their folder's name."""
    shutil.copy(empty_database, project.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project.folder / 'mlflow.db'}")
    project.edit("conf/config.yaml", "dir: multirun/${now:%Y-%m-%d}/${now:%H-%M-%S}", "dir: multirun/it's 12-00-00")
    return project


MINE = ("hydra.sweep.dir=multirun/mine", "hydra.sweep.subdir=t-${hydra.job.num}")


def write_seed(config: DictConfig) -> None:
    output_root().mkdir(parents=True, exist_ok=True)
    (output_root() / "seed").write_text(str(config.seed))


def files() -> list[str]:
    return sorted(f"{path.relative_to('multirun')}={path.read_text()}" for path in Path("multirun").rglob("seed"))


def test_two_sweeps_of_the_same_second_have_different_folders(small: Project) -> None:
    for seeds in ("1,2", "3,4"):
        ended = small.start(write_seed, "-m", f"seed={seeds}")
        assert ended.code == 0, ended.err
    first, second = "it's 12-00-00", "it's 12-00-00-2"
    assert set(files()) == {f"{first}/0/seed=1", f"{first}/1/seed=2", f"{second}/0/seed=3", f"{second}/1/seed=4"}


@pytest.mark.long
def test_a_folder_on_the_command_line_is_used_unchanged(small: Project) -> None:
    for seeds in ("1,2", "3,4"):
        ended = small.start(write_seed, "-m", f"seed={seeds}", *MINE)
        assert ended.code == 0, ended.err
    assert files() == ["mine/t-0/seed=3", "mine/t-1/seed=4"]


def test_a_sweep_that_does_not_start_leaves_no_folder(small: Project) -> None:
    ended = small.start(write_seed, "-m", "seed=1,2", "launcher=slurm")
    assert ended.code == 2 and not list(small.folder.glob("multirun/*"))
