"""Train on a folder of images with the README's commands: classes, duplicates, unreadable files, reruns, CSV tables."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.docs import IMAGES_COMMANDS, IMAGES_EXPERIMENT
from helpers.workspace import STAGES, Workspace, do_without_git, stages_that, workspace_of_tree

COLORS = {"cats": (180, 60, 60), "dogs": (60, 180, 60), "fish": (60, 60, 180)}
EACH = 24


def draw(path: Path, color: tuple[int, ...], random: np.random.Generator) -> None:
    """A noisy image of one color and of an odd size."""
    height, width = random.integers(17, 90, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = random.integers(0, 60, (height, width, 3))
    Image.fromarray((noise + np.array(color)).clip(0, 255).astype(np.uint8)).save(path)


def draw_all(folder: Path) -> None:
    """Three classes, a file that is no image, and one image twice."""
    random = np.random.default_rng(0)
    for name, color in COLORS.items():
        for number in range(EACH):
            draw(folder / name / f"{number:02}.{'jpg' if number % 2 else 'png'}", color, random)
    (folder / "cats" / "broken.jpg").write_bytes(b"no image at all")
    shutil.copy(folder / "dogs" / "04.png", folder / "dogs" / "the same.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, dict[str, str]]:
    """A workspace without git after the README's edit and commands, and the output of each command."""
    workspace = workspace_of_tree(tmp_path_factory.mktemp("unpacked archive"))
    do_without_git(workspace)
    draw_all(workspace.root / "images")
    for name, color in COLORS.items():
        draw(workspace.root / "new" / name / "01.png", color, np.random.default_rng(1))
    # `make` finds the environment set up.
    (workspace.root / ".venv").mkdir()
    (workspace.root / ".venv" / ".set-up").touch()
    workspace.set_params(experiment=IMAGES_EXPERIMENT)
    return workspace, {command: workspace.run("bash", "-c", command) for command in IMAGES_COMMANDS}


@pytest.mark.long
def test_the_readme_commands_end_with_a_model_of_the_images(trained) -> None:
    workspace, output = trained
    assert re.search(r"data set +images\b", output["make"]) and "test accuracy" in output["make"]
    assert "trained on image_folder" in output[IMAGES_COMMANDS[1]]
    assert "accuracy" in output[IMAGES_COMMANDS[2]].lower()
    assert workspace.classes() == list(COLORS)
    assert workspace.json("reports/metrics.json")["test"]["accuracy"] > 0.8
    dataset = workspace.json("reports/dataset.json")
    assert (dataset["name"], dataset["fallback"]) == ("image_folder", False)


@pytest.mark.long
def test_an_unpacked_archive_needs_no_git(trained) -> None:
    workspace, output = trained
    assert not (workspace.root / ".git").exists()
    assert stages_that(output["make"], "ran") == STAGES
    (run,) = workspace.runs()
    assert run.info.status == "FINISHED"
    assert not any(tag.startswith("git.") for tag in run.data.tags)


@pytest.mark.long
def test_unreadable_and_duplicate_images_are_reported(trained) -> None:
    _, output = trained
    assert "images/cats/broken.jpg: not an image of a supported format." in output["make"]
    assert "Skipped 1 unreadable file, at most 10 (data.max_unreadable)." in output["make"]
    assert re.search(r"1 image of the \w+ split is in the \w+ split as well: (cats|dogs)/[\w .]+ = ", output["make"])


@pytest.mark.long
def test_report_run_and_registry_have_the_classes(trained) -> None:
    workspace, _ = trained
    page = workspace.read("reports/report.html")
    assert all(name in page for name in COLORS) and "CIFAR-10" not in page
    run = workspace.runs()[-1]
    assert (run.info.status, run.data.tags["dataset"]) == ("FINISHED", "image_folder")
    assert [model.name for model in workspace.mlflow.search_registered_models()].count("image_folder") == 1
    metadata = workspace.json("models/metadata.json")
    assert (metadata["classes"], metadata["shape"], metadata["resize_mode"]) == (list(COLORS), [280, 280, 3], "crop")


@pytest.mark.long
def test_on_another_machine_the_models_folder_is_enough(trained, tmp_path) -> None:
    workspace, _ = trained
    elsewhere = Workspace(tmp_path / "elsewhere")
    shutil.copytree(workspace.root / "src", elsewhere.root / "src")
    shutil.copytree(workspace.root / "conf", elsewhere.root / "conf")
    (elsewhere.root / "params.yaml").write_text("experiment: tutorial\n")
    shutil.copytree(workspace.root / "models" / "last", elsewhere.root / "copied")
    for folder in (workspace.root, elsewhere.root):
        draw(folder / "new.webp", COLORS["fish"], np.random.default_rng(7))
    expected = workspace.run("python", "src/predict.py", "--json", "new.webp")
    output = elsewhere.run("python", "src/predict.py", "--json", "--model", "copied", "new.webp")
    assert json.loads(output.splitlines()[-1]) == json.loads(expected.splitlines()[-1])


@pytest.mark.long
def test_one_more_image_reruns_what_depends_on_it_and_is_the_only_one_read(trained, tmp_path) -> None:
    workspace = trained[0].copy(tmp_path / "copy")
    assert stages_that(workspace.dvc("repro", "--dry"), "ran") == []
    (cache,) = (workspace.root / ".cache/images").glob("*/280x280x3-crop")
    before = {path.name for path in cache.glob("*.npy")}
    draw(workspace.root / "images" / "fish" / "new.png", COLORS["fish"], np.random.default_rng(8))
    output = workspace.dvc("repro", "preprocess")
    assert stages_that(output, "ran") == ["preprocess"]
    (new,) = {path.name for path in cache.glob("*.npy")} - before
    assert len(np.load(cache / new)) == 1
    assert set(json.loads(workspace.dvc("status", "--json"))) == {"train", "evaluate"}


@pytest.mark.long
def test_custom_images_are_swept_and_can_come_from_a_csv_table_elsewhere(trained, tmp_path) -> None:
    workspace = trained[0].copy(tmp_path / "copy")
    output = workspace.train("-m", "optimizer=sgd,adam")
    assert "adam" in output and len([run for run in workspace.runs() if "mlflow.parentRunId" in run.data.tags]) >= 2
    elsewhere = tmp_path / "elsewhere"
    draw_all(elsewhere)
    names = sorted(path.relative_to(elsewhere).as_posix() for path in elsewhere.rglob("*.png"))
    rows = [f"{name},{name[:3]},{'test' if number % 4 == 0 else 'train'}" for number, name in enumerate(names)]
    (elsewhere / "labels.csv").write_text("\n".join(["path,label,split", *rows]))
    workspace.set_params(image_dir=str(elsewhere), data="csv_table")
    workspace.dvc("repro")
    assert workspace.classes() == ["cat", "dog", "fis"]
    assert stages_that(workspace.dvc("repro"), "ran") == []
