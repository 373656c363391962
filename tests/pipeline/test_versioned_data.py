"""Images and models under version control: `dvc add`, `dvc import-url`, `dvc update`, `dvc get` and tags of GTO."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from helpers.servers import serve_folder
from helpers.workspace import Workspace, stages_that


def draw(folder: Path, *colors: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, color in enumerate(colors):
        Image.new("RGB", (8, 8), color).save(folder / f"{color}{number}.png")


def draw_all(folder: Path) -> None:
    draw(folder / "warm", "red", "orange", "yellow", "brown", "pink", "tomato")
    draw(folder / "cold", "blue", "navy", "teal", "cyan", "green", "purple")


def sizes(workspace: Workspace) -> int:
    return sum(workspace.json("data/processed/dataset.json")["sizes"].values())


@pytest.fixture(scope="module")
def own(clone: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A repository with its own images, added to DVC before the first `dvc repro` of them."""
    workspace = clone.copy(tmp_path_factory.mktemp("versioned") / "own")
    workspace.set_params(experiment="custom_images")
    assert [path.name for path in (workspace.root / "images").iterdir()] == [".keep"]  # made by `configure`
    draw_all(workspace.root / "images")
    workspace.dvc("add", "images")
    workspace.commit()
    workspace.dvc("repro", "preprocess")
    workspace.commit()
    return workspace


@pytest.mark.long
def test_added_images_are_a_version_of_each_commit(own: Workspace) -> None:
    assert sizes(own) == 12
    before = own.read("images.dvc")
    draw(own.root / "images" / "warm", "gold")
    output = own.dvc("repro", "preprocess")
    assert "preprocess" in stages_that(output, "ran") and sizes(own) == 13
    assert own.read("images.dvc") != before
    own.commit()
    own.run("git", "checkout", "--quiet", "HEAD~1")
    own.dvc("checkout")
    assert len(list((own.root / "images").rglob("*.png"))) == 12 and sizes(own) == 12
    own.run("git", "checkout", "--quiet", "main")
    own.dvc("checkout")


@pytest.mark.long
def test_an_experiment_in_a_temporary_directory_sees_the_added_images(own: Workspace) -> None:
    setting = "++overrides.data.val_fraction=0.2"
    own.dvc("exp", "run", "--temp", "-S", setting, "--name", "elsewhere", "preprocess")
    references = own.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    (reference,) = (name for name in references if name.endswith("/elsewhere"))
    stages = yaml.safe_load(own.run("git", "show", f"{reference}:dvc.lock"))["stages"]
    assert stages["preprocess"]["params"]["composed.yaml"]["preprocess"]["data"]["val_fraction"] == 0.2


@pytest.mark.long
def test_an_imported_table_is_updated(clone: Workspace, tmp_path: Path) -> None:
    workspace = clone.copy(tmp_path / "importing")
    draw_all(workspace.root / "images" / "files")
    names = sorted(path.relative_to(workspace.root / "images") for path in (workspace.root / "images").rglob("*.png"))
    rows = [f"{name.as_posix()},{name.parent.name}" for name in names]
    served = tmp_path / "served"
    served.mkdir()
    (served / "labels.csv").write_text("\n".join(["path,label", *rows[:-1]]) + "\n", encoding="utf-8")
    with serve_folder(served) as address:
        workspace.dvc("import-url", f"{address}/labels.csv", "images/labels.csv")
        workspace.dvc("add", "images/files")
        workspace.set_params(experiment="custom_images", data="csv_table")
        workspace.dvc("repro", "preprocess")
        assert sizes(workspace) == 11
        (served / "labels.csv").write_text("\n".join(["path,label", *rows]) + "\n", encoding="utf-8")
        workspace.dvc("update", "images/labels.csv.dvc")
    assert stages_that(workspace.dvc("repro", "preprocess"), "ran") == ["preprocess"]
    assert sizes(workspace) == 12


@pytest.mark.long
def test_an_imported_folder_is_updated(own: Workspace, tmp_path: Path) -> None:
    workspace = own.copy(tmp_path / "importing")
    workspace.run("git", "rm", "--quiet", "images.dvc")
    shutil.rmtree(workspace.root / "images")
    share = tmp_path / "share"
    draw_all(share)
    workspace.dvc("import-url", str(share), "images")
    draw(share / "cold", "indigo")
    workspace.dvc("update", "images.dvc")
    workspace.dvc("repro", "preprocess")
    assert sizes(workspace) == 13


@pytest.mark.long
def test_another_folder_gets_the_model_by_path_and_by_tag(clone: Workspace, tmp_path: Path) -> None:
    repository = clone.copy(tmp_path / "repository")
    here = Workspace(tmp_path / "here")
    here.root.mkdir()
    for key in ("user.name", "user.email"):
        repository.run("git", "config", key, "tests@localhost")
    repository.run("gto", "register", "model", "--version", "v1.0.0")
    repository.run("gto", "assign", "model", "--version", "v1.0.0", "--stage", "prod")
    here.dvc("get", str(repository.root), "models", "-o", "by path")
    here.dvc("artifacts", "get", str(repository.root), "model", "--rev", "v1.0.0", "-o", "by version")
    here.dvc("artifacts", "get", str(repository.root), "model", "--stage", "prod", "-o", "by stage")
    expected = (repository.root / "models" / "last" / "model.onnx").read_bytes()
    for name in ("by path", "by version", "by stage"):
        assert (here.root / name / "last" / "model.onnx").read_bytes() == expected
    Image.new("RGB", (32, 32), "red").save(here.root / "red.png")
    model, image = str(here.root / "by stage"), str(here.root / "red.png")
    said = clone.run("python", "src/predict.py", "--json", "--model", model, image)
    assert json.loads(said.splitlines()[-1])["class"]
