"""A folder of somebody's images goes all the way, by the commands of the README as they stand."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.workspace import ROOT, STAGES, Workspace, do_without_git, stages_that, workspace_of_tree

COLOURS = {"cats": (180, 60, 60), "dogs": (60, 180, 60), "fish": (60, 60, 180)}
EACH = 24


def draw(path: Path, colour: tuple[int, ...], random: np.random.Generator) -> None:
    """A noisy image of one colour and of an odd size."""
    height, width = random.integers(17, 90, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = random.integers(0, 60, (height, width, 3))
    Image.fromarray((noise + np.array(colour)).clip(0, 255).astype(np.uint8)).save(path)


def draw_all(folder: Path) -> None:
    """Three classes, a file that is no image, and one image twice."""
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        for number in range(EACH):
            draw(folder / name / f"{number:02}.{'jpg' if number % 2 else 'png'}", colour, random)
    (folder / "cats" / "broken.jpg").write_bytes(b"no image at all")
    shutil.copy(folder / "dogs" / "04.png", folder / "dogs" / "the same.png")


def typed() -> list[str]:
    """What the README says to type, in five minutes."""
    five_minutes = (ROOT / "README.md").read_text().partition("\n## Your own images")[2].partition("\n## ")[0]
    return re.findall(r"^ *\$ (.+)$", five_minutes, re.MULTILINE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, dict[str, str]]:
    """A workspace without git in which the page's commands were typed, and what each of them said."""
    workspace = workspace_of_tree(tmp_path_factory.mktemp("unpacked archive"))
    do_without_git(workspace)
    draw_all(workspace.root / "images")
    # What `make` would set up is there.
    (workspace.root / ".venv").mkdir()
    (workspace.root / ".venv" / ".set-up").touch()
    return workspace, {words: workspace.run("bash", "-c", words) for words in typed()}


def test_the_five_minutes_end_with_a_model_that_knows_the_images(trained) -> None:
    workspace, said = trained
    assert list(said) == [
        "python src/choose.py data=image_folder experiment=custom_images",
        "make",
        "python src/predict.py images/cats/01.jpg",
    ]
    assert re.search(r"data set +images\b", said["make"]) and "test accuracy" in said["make"]
    assert "trained on image_folder" in said["python src/predict.py images/cats/01.jpg"]
    metrics = workspace.json("reports/metrics.json")
    assert list(metrics["per_class"]) == list(COLOURS)
    assert metrics["test"]["accuracy"] > 0.8
    assert (metrics["dataset"]["name"], metrics["dataset"]["fallback"]) == ("image_folder", False)


def test_an_unpacked_archive_needs_no_git(trained) -> None:
    workspace, said = trained
    assert not (workspace.root / ".git").exists()
    assert stages_that(said["make"], "ran") == STAGES
    (run,) = workspace.runs()
    assert run.info.status == "FINISHED"
    assert not any(tag.startswith("git.") for tag in run.data.tags)


def test_what_is_no_image_and_what_stands_twice_is_said(trained) -> None:
    _, said = trained
    assert "images/cats/broken.jpg: it is no image of a known format." in said["make"]
    assert "Left out: 1 of at most 10 (data.max_unreadable)." in said["make"]
    assert re.search(r"1 images of the \w+ part are in the \w+ part as well: (cats|dogs)/[\w .]+ = ", said["make"])


def test_reports_runs_and_registry_know_the_classes(trained) -> None:
    workspace, _ = trained
    page = workspace.read("reports/report.html")
    assert all(name in page for name in COLOURS) and "CIFAR-10" not in page
    run = workspace.runs()[-1]
    assert (run.info.status, run.data.tags["dataset"]) == ("FINISHED", "image_folder")
    assert [model.name for model in workspace.mlflow.search_registered_models()].count("image_folder") == 1
    facts = workspace.json("models/metadata.json")
    assert (facts["classes"], facts["shape"], facts["resize_mode"]) == (list(COLOURS), [32, 32, 3], "crop")


def test_on_another_machine_the_models_folder_is_enough(trained, tmp_path) -> None:
    workspace, _ = trained
    elsewhere = Workspace(tmp_path / "elsewhere")
    shutil.copytree(workspace.root / "src", elsewhere.root / "src")
    shutil.copytree(workspace.root / "conf", elsewhere.root / "conf")
    (elsewhere.root / "params.yaml").write_text("experiment: tutorial\n")
    shutil.copytree(workspace.root / "models" / "last", elsewhere.root / "given")
    draw(elsewhere.root / "new.webp", COLOURS["fish"], np.random.default_rng(7))
    said = elsewhere.run("python", "src/predict.py", "--json", "--model", "given", "new.webp")
    assert json.loads(said.splitlines()[-1])["class"] == "fish"


def test_a_image_more_reruns_what_depends_on_it_and_is_the_only_one_that_is_read(trained, tmp_path) -> None:
    workspace = trained[0].copy(tmp_path / "copy")
    assert stages_that(workspace.dvc("repro", "--dry"), "ran") == []
    (cache,) = (workspace.root / ".cache/images").glob("*/32x32x3-crop")
    kept = {path.name for path in cache.glob("*.npy")}
    draw(workspace.root / "images" / "fish" / "new.png", COLOURS["fish"], np.random.default_rng(8))
    said = workspace.dvc("repro", "preprocess")
    assert stages_that(said, "ran") == ["preprocess"]
    (new,) = {path.name for path in cache.glob("*.npy")} - kept
    assert len(np.load(cache / new)) == 1
    assert set(json.loads(workspace.dvc("status", "--json"))) == {"train", "evaluate"}


@pytest.mark.long
def test_ones_own_images_are_swept_and_come_from_a_table_elsewhere(trained, tmp_path) -> None:
    workspace = trained[0].copy(tmp_path / "copy")
    said = workspace.train("-m", "optimizer=sgd,adam")
    assert "adam" in said and len([run for run in workspace.runs() if "mlflow.parentRunId" in run.data.tags]) >= 2
    elsewhere = tmp_path / "elsewhere"
    draw_all(elsewhere)
    names = sorted(path.relative_to(elsewhere).as_posix() for path in elsewhere.rglob("*.png"))
    rows = [f"{name},{name[:3]},{'test' if number % 4 == 0 else 'train'}" for number, name in enumerate(names)]
    (elsewhere / "labels.csv").write_text("\n".join(["path,label,split", *rows]))
    workspace.run("python", "src/choose.py", f"image_dir={elsewhere}", "data=csv")
    workspace.dvc("repro")
    assert list(workspace.json("reports/metrics.json")["per_class"]) == ["cat", "dog", "fis"]
    assert stages_that(workspace.dvc("repro"), "ran") == []
