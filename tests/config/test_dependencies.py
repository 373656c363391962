"""When DVC starts `configure`, it refuses inputs whose changes DVC would miss."""

import shutil
from pathlib import Path

import pytest

from cifar_pipeline.config import dvc_inputs, source_files
from configure import configure
from helpers.config_project import ROOT, Project
from helpers.parameters import some_of


@pytest.fixture
def started_by_dvc(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with its code whose `configure` is started by DVC."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", project.folder / "src", ignore=ignored)
    shutil.copy(ROOT / "dvc.yaml", project.folder)
    monkeypatch.setenv("DVC_STAGE", "configure")
    monkeypatch.syspath_prepend(str(project.folder / "src"))
    source = (project.folder / "src").resolve()
    monkeypatch.setattr(dvc_inputs, "SOURCE", source)
    monkeypatch.setattr(dvc_inputs, "loaded_sources", lambda: source_files.SourceTree(source))
    return project


NET = "from torch import nn\n\n\nclass Net(nn.Linear):\n    def __init__(self, channels, size, classes): ...\n"


def test_tracked_inputs_are_accepted(started_by_dvc: Project) -> None:
    assert started_by_dvc.start(configure).code == 0


@pytest.mark.parametrize(
    ("file", "target"),
    [("src/custom_net.py", "custom_net.Net"), ("src/cifar_pipeline/nets.py", "cifar_pipeline.nets.Net")],
)
def test_code_outside_of_tracked_folders_is_refused(
    started_by_dvc: Project, monkeypatch: pytest.MonkeyPatch, file: str, target: str
) -> None:
    started_by_dvc.write(file, NET)
    monkeypatch.setattr("configure.check_targets", lambda config: None)  # the package is not importable here
    started_by_dvc.start(configure, f"model._target_={target}").assert_refused(
        f"{file} is used by `_target_={target}`, but DVC does not track it", "move it to src/project/", ".Net`"
    )
    monkeypatch.delenv("DVC_STAGE")
    assert started_by_dvc.start(configure, f"model._target_={target}").code == 0


def test_a_data_source_among_the_networks_is_refused(started_by_dvc: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit of a network must not rerun `preprocess`, which therefore depends on a separate folder."""
    monkeypatch.setattr("configure.check_targets", lambda config: None)
    started_by_dvc.write("src/project/custom.py", "class Stripes: ...\n")
    fragments = "src/project/custom.py is used by", "src/project/data/", "`_target_=project.data.custom.Stripes`"
    started_by_dvc.start(configure, "data.source._target_=project.custom.Stripes").assert_refused(*fragments)
    started_by_dvc.write("src/project/data/custom.py", "class Stripes: ...\n")
    assert started_by_dvc.start(configure, "data.source._target_=project.data.custom.Stripes").code == 0


def test_an_untracked_import_of_a_users_code_is_refused(
    started_by_dvc: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("configure.check_targets", lambda config: None)
    started_by_dvc.write("src/project/custom.py", "from custom_layers import Net\n")
    started_by_dvc.write("src/custom_layers.py", NET)
    started_by_dvc.start(configure, "model._target_=project.custom.Net").assert_refused(
        "src/custom_layers.py is used by"
    )


@pytest.mark.parametrize("path", ["conf/more", "src/project/more"])
def test_linked_folders_are_refused(started_by_dvc: Project, path: str) -> None:
    (started_by_dvc.folder / "elsewhere").mkdir()
    (started_by_dvc.folder / path).symlink_to(started_by_dvc.folder / "elsewhere")
    started_by_dvc.start(configure).assert_refused(
        f"{Path(path).name} is a link to a folder, whose changes DVC does not detect"
    )


def test_untracked_values_are_refused(started_by_dvc: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATE", "0.1")
    (started_by_dvc.folder / "options").mkdir()
    searchpath = f"hydra.searchpath=[file://{started_by_dvc.folder}/options]"
    started_by_dvc.start(configure, searchpath).assert_refused("hydra.searchpath names", "put the options into conf/")
    started_by_dvc.edit("conf/optimizer/sgd.yaml", "lr: 0.001", "lr: ${oc.decode:${oc.env:RATE}}")
    started_by_dvc.start(configure).assert_refused("optimizer.lr=", "reads an environment variable", "the value itself")
    assert started_by_dvc.start(configure, "optimizer=adam").code == 0


PATHS = ["net.pth", "data/net.pth", "pretrained/../net.pth", "/tmp/net.pth", "models/best"]


@pytest.mark.parametrize("path", some_of(PATHS, 0, 2))
def test_weights_outside_of_the_tracked_folder_are_refused(started_by_dvc: Project, path: str) -> None:
    started_by_dvc.start(configure, f"model.weights={path}").assert_refused(
        f"model.weights={path} is outside of pretrained/", f"write model.weights=pretrained/{Path(path).name}."
    )


def test_tracked_weights_and_without_dvc_all_others_are_accepted(
    started_by_dvc: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tracked in ("pretrained/net.pth", "runs:/abc/best"):
        assert started_by_dvc.start(configure, f"model.weights={tracked}").code == 0
    monkeypatch.delenv("DVC_STAGE")
    assert started_by_dvc.start(configure, "model.weights=net.pth").code == 0
