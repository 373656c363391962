"""Use the trained model: predict image files, at any revision, and promote it to champion."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from PIL import Image

from cifar_pipeline.inference.metadata import ModelMetadata
from cifar_pipeline.inference.predictor import Predictor
from helpers.config_project import run
from helpers.workspace import Workspace, sentences
from predict import predict


@pytest.fixture(scope="module")
def images(clone: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test split as image files."""
    folder = tmp_path_factory.mktemp("images")
    for number, image in enumerate(np.load(clone.root / "data" / "processed" / "test" / "images.npy")):
        Image.fromarray(image).save(folder / f"{number:04}.png")
    return folder


def test_files_of_the_test_split_get_the_reported_predictions(clone: Workspace, images: Path) -> None:
    reported = pandas.read_csv(clone.root / "reports" / "predictions.csv")
    predictions = list(Predictor.open(clone.root / "models" / "last").predictions(sorted(images.iterdir()), 256, 1))
    assert [int(answer.ranking[0][0]) for answer in predictions] == list(reported["prediction"])
    found = [answer.ranking[0][1] for answer in predictions]
    np.testing.assert_allclose(found, reported["probability"], atol=2e-6)


def test_a_trained_model_has_its_metadata(clone: Workspace) -> None:
    dataset = clone.json("data/processed/dataset.json")
    for checkpoint in ("last", "best"):
        metadata = ModelMetadata.read(clone.root / "models" / checkpoint)
        assert (metadata.dataset, metadata.dataset_hash) == ("digits", dataset["hash"])
        assert (list(metadata.classes), list(metadata.shape)) == (dataset["classes"], dataset["shape"])
        assert metadata.commit == clone.run("git", "rev-parse", "HEAD~").strip()  # the results were committed after it


def test_models_of_any_revision_can_be_used(copy: Workspace, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.root)
    image_file = images / "0000.png"
    now = run(predict, image_file, "--json")
    shutil.rmtree("models")
    assert now.code == 0 and "There is no model in models: " in run(predict, image_file).err
    assert run(predict, image_file, "--json", "--rev", "HEAD") == now
    assert "DVC has no models of HEAD~ (" in run(predict, image_file, "--rev", "HEAD~").err
    assert "There is no revision v9: " in run(predict, image_file, "--rev", "v9").err


@pytest.mark.long
def test_the_accuracy_is_printed_before_torch_is_imported(copy: Workspace) -> None:
    """`evaluate` measures the model file in seconds; what explains its predictions comes afterwards."""
    watch = (
        "import runpy, sys; sys.path.insert(0, 'src'); sys.argv = ['src/evaluate.py']\n"
        "from cifar_pipeline.utils import console; format = console._ConsoleFormatter.format\n"
        "heavy = {'torch', 'lightning', 'mlflow', 'pandas'}\n"
        "with_modules = lambda *arguments: f'{format(*arguments)} {sorted(heavy & sys.modules.keys())}'\n"
        "console._ConsoleFormatter.format = with_modules\n"
        "runpy.run_path('src/evaluate.py', run_name='__main__')"
    )
    said = copy.run("python", "-c", watch)
    (line,) = (line for line in sentences(said) if line.startswith("Test accuracy: "))
    assert line.endswith("(last weights; measured on cpu, 1 thread) []") or line.endswith("threads) []"), line


@pytest.mark.long
def test_a_better_model_becomes_the_champion_and_can_be_rolled_back(copy: Workspace, images: Path) -> None:
    (copy.root / "shown").symlink_to(images)
    assert "is the champion now: there was none" in copy.run("python", "src/registry.py", "promote")
    copy.train("-m", "optimizer=adam", "trainer.max_epochs=1,4")
    said = copy.run("python", "src/report.py", "sweep")
    assert "adam" in said
    winner = max(copy.runs(), key=lambda run: run.data.metrics.get("val/accuracy", 0))
    assert "Version 2 of digits" in copy.run("python", "src/registry.py", "promote", winner.info.run_name)
    assert "is the champion already" in copy.run("python", "src/registry.py", "promote", winner.info.run_name)

    def answer(model: str) -> dict[str, Any]:
        said = copy.run("python", "src/predict.py", "shown/0000.png", "--json", "--model", f"models:/digits{model}")
        return json.loads(sentences(said)[-1])

    first, second = answer("/1"), answer("/2")
    assert first != second == answer("@champion")
    assert "Version 1 of digits" in copy.run("python", "src/registry.py", "rollback")
    assert answer("@champion") == first
    listed = copy.run("python", "src/registry.py", "list")
    assert listed.index("digits/2") < listed.index("digits/1")
    assert "champion" in next(line for line in listed.splitlines() if "digits/1" in line)


@pytest.mark.long
def test_a_moved_project_uses_its_champion_and_trains_into_its_new_folder(
    copy: Workspace, images: Path, tmp_path: Path
) -> None:
    copy.run("python", "src/registry.py", "promote")
    image_file = str(images / "0000.png")
    ask = ("python", "src/predict.py", "--model", "models:/digits@champion", "--json", image_file)
    before = sentences(copy.run(*ask))[-1]
    twin = Workspace(tmp_path / "the twin")
    subprocess.run(["cp", "-a", copy.root, twin.root], check=True)
    moved = Workspace(copy.root.rename(tmp_path / "umbenannt & neu"))
    for workspace in (moved, twin):
        said = workspace.run("python", "src/registry.py", "list")
        assert f"This project was in {copy.root} before" in said and str(workspace.root) in said
        assert sentences(workspace.run(*ask))[-1] == before
        workspace.train("seed=7", "trainer.max_epochs=1")
        run = workspace.runs()[-1]
        assert run.info.artifact_uri == f"{(workspace.root / 'mlruns').as_uri()}/{run.info.run_id}/artifacts"
        assert (workspace.root / "mlruns" / run.info.run_id / "artifacts" / "metadata.json").is_file()
        assert "This training" in workspace.train()  # what had finished before is found
    assert not copy.root.exists()
    assert moved.runs()[-1].info.run_id != twin.runs()[-1].info.run_id
