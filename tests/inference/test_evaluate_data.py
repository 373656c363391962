"""Test `evaluate.py --model --data`: labeled folders and tables, several models, the folder of the results, MLflow."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from small_model import CLASSES, export, network, training_metadata

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.inference.onnx_export import OnnxTemplate, save_model
from cifar_pipeline.inference.predictor import Predictor
from cifar_pipeline.models.build import NormalizedModel
from cifar_pipeline.models.lenet import LeNet
from cifar_pipeline.reporting import model_evaluation
from cifar_pipeline.reporting.tables import read_rows
from cifar_pipeline.tracking.client import connect
from evaluate import evaluate_data
from helpers.config_project import Ended, Project, run
from helpers.dir_snapshot import content_of
from helpers.source_tree import SRC
from predict import predict

GRAY_CLASSES = ("truck", "cat", "fox", "emu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Export models: two of one network with other weights, and one of small gray images with other classes."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(1)
    other = NormalizedModel(LeNet(channels=3, size=32, classes=len(CLASSES)), mean=0.5, std=0.5)
    gray = NormalizedModel(LeNet(channels=1, size=28, classes=len(GRAY_CLASSES)), mean=0.5, std=0.5)
    save_model(
        OnnxTemplate.of(gray, (28, 28, 1), "softmax"),
        gray,
        training_metadata(classes=list(GRAY_CLASSES), shape=[28, 28, 1], resize_mode="pad", fingerprint="f" * 16),
        folder / "gray",
    )
    return {
        "first": export(folder / "first", network()),
        "second": export(folder / "second", other, fingerprint="e" * 16),
        "gray": folder / "gray",
    }


def draw(folder: Path, count: int, seed: int, size: tuple[int, int] = (40, 50)) -> None:
    """Write random images of this height and width."""
    folder.mkdir(parents=True)
    for number, pixels in enumerate(np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8)):
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture
def ready(project: Project, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with an empty database, and the folder `pets` of three classes, of which `models` do not know one."""
    shutil.copy(empty_database, project.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project.folder / 'mlflow.db'}")
    for seed, name in enumerate(("cat", "dog", "fox")):
        draw(project.folder / "pets" / name, 4, seed)
    return project


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no figures and pages, which take most of the time and have tests of their own."""
    monkeypatch.setattr(model_evaluation, "write_each", lambda writers, title: {})


def evaluate(*arguments: object) -> Ended:
    return run(evaluate_data, *arguments)


def results(folder: Path | str) -> Any:
    return json.loads(Path(folder, "metrics.json").read_text(encoding="utf-8"))


def predicted(*paths: str, model: Path) -> list[tuple[str, str]]:
    """Classify files with predict.py; return the class and the probability of each."""
    lines = run(predict, *paths, "--model", model, "--json", "--top", 1).out.splitlines()
    return [(line["class"], f"{line['probability']:.6f}") for line in map(json.loads, lines)]


def test_the_predictions_are_those_of_predict_and_the_numbers_those_of_a_count_by_hand(
    ready: Project, models: dict[str, Path]
) -> None:
    ready.write("reports/metrics.json", "{}")
    (frequent, _), *_ = predicted("pets/dog", model=models["first"])
    Path("pets/dog").rename(Path("pets", frequent))
    client, experiment = connect()
    training = client.create_run(experiment, tags={"fingerprint": training_metadata()["fingerprint"]})
    client.set_terminated(training.info.run_id)
    before = client.get_run(training.info.run_id).to_dictionary()
    ended = evaluate("--model", models["first"], "--data", "pets")
    assert not ended.code, ended.err
    assert "does not know 1 of the 3 classes in pets (fox): their 4 images are left out of the metrics" in ended.err
    assert "has no images of 8 of the 10 classes" in ended.out
    (folder,) = Path("reports/evaluations").glob("*first-on-pets")
    assert {path.name for path in folder.iterdir()} == {
        "metrics.json", "report.html", "predictions.csv", "per_class.csv", "confusion.csv", "confusion.png",
        "mistakes.png",
    }  # fmt: skip
    _, *rows = read_rows(folder / "predictions.csv")
    assert [(row[2], row[3]) for row in rows] == predicted("pets", model=models["first"])
    assert {row[0] for row in rows} >= {"pets/cat/0.png", "pets/fox/3.png"}
    known = [row for row in rows if row[1] != "fox"]
    content = results(folder)
    assert content["images"] == len(known) == 8
    right = sum(row[1] == row[2] for row in known)
    assert 0 < right < 8 and content["metrics"]["accuracy"] == right / 8
    assert content["unknown_classes"]["fox"]["images"] == 4
    assert content_of(ready.folder / "reports")["metrics.json"] == b"{}"

    assert client.get_run(training.info.run_id).to_dictionary() == before
    (logged,) = client.search_runs([experiment], f"attributes.run_id != '{training.info.run_id}'")
    assert logged.info.status == "FINISHED" and logged.info.run_name.startswith("evaluate ")
    assert logged.data.metrics["evaluation/accuracy"] == right / 8
    assert logged.data.tags["model_uri"] == str(models["first"]) and "fingerprint" not in logged.data.tags
    assert logged.data.tags["model_run"] == training.info.run_id
    (data,) = logged.inputs.dataset_inputs
    assert (data.dataset.source, data.tags[0].value) == ("pets", "evaluation")
    assert "report.html" in {file.path for file in client.list_artifacts(logged.info.run_id)}


def test_several_models_of_other_sizes_and_classes_are_compared_on_what_all_know(
    ready: Project, models: dict[str, Path], without_figures: None
) -> None:
    ended = evaluate(
        *("--model", models["first"], "--model", models["gray"], "--data", "pets", "--output", "out"),
        *("predict.batch_size=3", "comparison.significance_level=0.1", "-q"),
    )
    assert not ended.code, ended.err
    shown = ended.out.splitlines()
    assert [line.partition(":")[0] for line in shown[:2]] == [f"A, {models['first']}", f"B, {models['gray']}"]
    assert len(shown) == 3 and shown[2].startswith("A and B ")
    content = results("out")
    assert content["images"] == 4  # cats
    assert content["tests"][0]["significance_level"] == 0.1
    header, *rows = read_rows(Path("out/predictions.csv"))
    for letter, name in (("a", "first"), ("b", "gray")):
        column = header.index(f"prediction_{letter}")
        assert [(row[column], row[column + 1]) for row in rows] == predicted("pets", model=models[name])
    assert [results(f"out/{letter}")["images"] for letter in "ab"] == [8, 8]
    runs = MlflowClient().search_runs(["1"], order_by=["attributes.start_time"])
    assert [run_.data.metrics["evaluation/images"] for run_ in runs] == [8, 8]
    assert [file.path for file in MlflowClient().list_artifacts(runs[0].info.run_id, "comparison")]


def test_a_new_folder_is_taken_and_a_given_one_is_replaced_by_the_same_evaluation_only(
    ready: Project, models: dict[str, Path], without_figures: None
) -> None:
    command = ("--model", models["first"], "--data", "pets")
    for _ in range(2):
        assert not evaluate(*command).code
    names = sorted(path.name for path in Path("reports/evaluations").iterdir())
    assert len(names) == 2 and names[1] == f"{names[0]}-2"
    assert not evaluate(*command, "--output", "out").code
    ready.edit("out/metrics.json", '"images": 8', '"images": 0')
    again = evaluate(*command, "--output", "out")
    assert "(replaced that of the same evaluation)" in again.out
    assert results("out")["images"] == 8
    before = content_of(ready.folder / "out")
    refused = evaluate("--model", models["second"], "--data", "pets", "--output", "out")
    refused.assert_refused(
        f"out has the evaluation of {models['first']} on pets: choose a new folder, or remove this one."
    )
    assert content_of(ready.folder / "out") == before
    ready.write("out/notes.txt", "mine")
    evaluate(*command, "--output", "out").assert_refused("out also has notes.txt, which would be lost")
    evaluate(*command, "--output", "conf").assert_refused("conf is not empty, and has no evaluation of a model")
    for folder in ("reports", "models/mine", "data/processed"):
        evaluate(*command, "--output", folder).assert_refused(f"{folder} belongs to the outputs of `dvc repro`")


def test_a_folder_with_a_long_name_in_chinese_is_evaluated(
    ready: Project, models: dict[str, Path], without_figures: None
) -> None:
    name = 80 * "\u82b1"
    Path("pets").rename(name)
    assert not evaluate("--model", models["first"], "--data", name).code
    (folder,) = Path("reports/evaluations").iterdir()
    assert folder.name.endswith(20 * "\u82b1") and results(folder)["data"]["path"] == name


def test_unreadable_files_are_listed_up_to_a_limit(
    ready: Project, models: dict[str, Path], without_figures: None
) -> None:
    for number in range(3):
        Path(f"pets/cat/bad{number}.png").write_bytes(b"no image")
    ready.write("pets/dog/notes.txt", "a")
    command = ("--model", models["first"], "--data", "pets", "--output", "out")
    ended = evaluate(*command, "predict.max_unreadable=2")
    assert ended.code == 2 and not Path("out").exists()
    assert "More than 2 files are unreadable" in ended.err and "pets/cat/bad0.png: not an image" in ended.err
    ended = evaluate(*command)
    assert not ended.code and "Skipped 4 files, listed in out/skipped.csv" in ended.err
    assert [row[0] for row in read_rows(Path("out/skipped.csv"))][1:] == [
        "pets/dog/notes.txt", "pets/cat/bad0.png", "pets/cat/bad1.png", "pets/cat/bad2.png",
    ]  # fmt: skip
    content = results("out")
    assert content["images"] == 8 and content["data"]["unreadable_files"] == 3
    assert len(list(read_rows(Path("out/predictions.csv")))) == 1 + 12


def test_of_splits_and_tables_the_test_images_are_measured(
    ready: Project, models: dict[str, Path], without_figures: None
) -> None:
    for split, seed in (("train", 0), ("test", 7)):
        shutil.copytree("pets/cat", f"set/{split}/cat")
        draw(ready.folder / "set" / split / "dog", 1 + seed, seed)
    ended = evaluate("--model", models["first"], "--data", "set", "--output", "out")
    assert not ended.code and "Measuring on the test split of set, not on train." in ended.out
    assert results("out")["images"] == 4 + 8
    assert [row[0] for row in read_rows(Path("out/predictions.csv"))][1] == "set/test/cat/0.png"

    rows = [f"pets/{name}/{n}.png,{name},{'test' if n else 'val'}" for name in ("dog", "cat") for n in range(4)]
    ready.write("table.csv", "\n".join(["path,label,split", *rows]) + "\n")
    ended = evaluate("--model", models["first"], "--data", "table.csv", "--output", "out2")
    assert not ended.code and "Measuring on the test split of table.csv, not on val." in ended.out
    assert results("out2")["images"] == 6


def test_the_test_split_of_processed_data_is_measured_in_the_size_of_each_model(
    ready: Project, models: dict[str, Path], digits: Dataset, without_figures: None
) -> None:
    shutil.copytree(digits.folder, "data/processed")
    digit_names = [str(number) for number in range(10)]
    first = export(ready.folder / "m1", network(), classes=digit_names)
    save_gray(models, ready.folder / "m2", digit_names[:4])
    ended = evaluate("--model", "m1", "--model", "m2", "--data", "data/processed", "--output", "out")
    assert not ended.code, ended.err
    assert "m2 takes images of 28 x 28 pixels: those in data/processed (32 x 32) are resized once more." in ended.err
    images, labels = digits.split("test")
    content = results("out/a")
    assert content["images"] == len(labels)
    expected = Predictor.open(first).probabilities(images).argmax(1)
    rows = list(read_rows(Path("out/a/predictions.csv")))[1:]
    assert [row[2] for row in rows] == [digit_names[index] for index in expected]
    for index in (0, 3):
        Image.fromarray(images[index]).save(f"{index}.png")
    ours = [(row[2], row[3]) for row in list(read_rows(Path("out/b/predictions.csv")))[1:]]
    assert [ours[0], ours[3]] == predicted("0.png", "3.png", model=Path("m2"))


def save_gray(models: dict[str, Path], folder: Path, classes: list[str]) -> None:
    """Copy the gray model with other classes."""
    shutil.copytree(models["gray"], folder)
    content = onnx.load(folder / "model.onnx")
    for entry in content.metadata_props:
        if entry.key == "facts":
            entry.value = json.dumps({**json.loads(entry.value), "classes": classes})
    onnx.save(content, folder / "model.onnx")
    (folder / "hashes.json").unlink()


@pytest.mark.parametrize("root", ["pets", "trained on"])
def test_images_that_a_model_was_trained_on_are_named(
    ready: Project, models: dict[str, Path], without_figures: None, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    """By their path, or by their content if they are copies with other names."""
    names = ["cat/1.png", "dog/2.png", "gone/3.png"]
    if root != "pets":
        names += ["other.png"]
        for name, pet in [("cat/1.png", "dog/1.png"), ("dog/2.png", "cat/3.png")]:
            Path(root, name).parent.mkdir(parents=True)
            shutil.copy(Path("pets", pet), Path(root, name))
        # As long as another one, but different.
        content = Path("pets/dog/0.png").read_bytes()
        Path(root, "other.png").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    dataset = SimpleNamespace(
        hash=training_metadata()["dataset"]["hash"],
        requested={"source": {"root": root}},
        files=lambda split: names if split == "train" else [],
    )
    monkeypatch.setattr(Dataset, "open", lambda folder: dataset)
    ended = evaluate("--model", models["first"], "--data", "./pets", "--output", "out")
    assert "was trained on 2 of the 12 images, so the accuracy says little about new images" in ended.err


def empty(folder: Path) -> None:
    (folder / "odd").mkdir()


def without_classes(folder: Path) -> None:
    (folder / "odd").mkdir()
    shutil.copy(folder / "pets/cat/0.png", folder / "odd")


def other_classes(folder: Path) -> None:
    shutil.copytree(folder / "pets/cat", folder / "odd/Cat")


def without_images(folder: Path) -> None:
    (folder / "odd/cat").mkdir(parents=True)


def mixed(folder: Path) -> None:
    shutil.copytree(folder / "pets", folder / "odd")
    (folder / "odd/test").mkdir()


def a_file(folder: Path) -> None:
    shutil.copy(folder / "pets/cat/0.png", folder / "odd")


def nothing(folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("arguments", "make", "sentence"),
    [
        (["--data", "pets"], nothing, "--model is missing: write --model models"),
        (["--model", "M"], nothing, "--data is missing: write --data FOLDER, or leave out --model"),
        (["--model", "M", "--model", "M", "--data", "pets"], nothing, "is given twice: name different models"),
        (["--model", "nowhere", "--data", "pets"], nothing, "There is no model in nowhere"),
        (["--model", "M", "--data", "odd"], nothing, "There is no folder or table odd: write a folder with a folder"),
        (["--model", "M", "--data", "odd"], empty, "odd has no folder of images for each class"),
        (["--model", "M", "--data", "odd"], without_classes, "`python src/predict.py odd`"),
        (["--model", "M", "--data", "odd"], other_classes, "knows none of the classes in odd (Cat): its classes are"),
        (["--model", "M", "--data", "odd"], without_images, "odd has no images"),
        (["--model", "M", "--data", "odd"], mixed, "odd contains split folders (test) next to others (cat, dog, fox)"),
        (["--model", "M", "--data", "odd"], a_file, "odd is a file, but not a table"),
        (["--model", "M", "--data", "t.csv"], lambda f: (f / "t.csv").write_text("path\n"), "has no column label"),
        (["--model", "M", "--data", "pets", "--output", "params.yaml"], nothing, "params.yaml is a file, but a folder"),
        (["--model", "M", "--data", "pets", "optimizer=adam"], nothing, "optimizer=adam has no effect"),
        (["--model", "M", "--data", "pets", "evaluation.batch_size=3"], nothing, "has no effect on the evaluation"),
        (["--model", "M", "--data", "pets", "predict.max_unreadable=x"], nothing, "predict.max_unreadable=x"),
        (["--model", "M", "pets", "--data", "pets"], nothing, "pets is not KEY=VALUE"),
        (["--model", "M", "--data", "pets", "metrics=[nope]"], nothing, "nope"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else getattr(value, "__name__", ""),
)  # fmt: skip
def test_what_cannot_be_evaluated_is_refused_in_a_sentence_before_any_work(
    ready: Project, models: dict[str, Path], arguments: list[str], make: Callable[[Path], object], sentence: str
) -> None:
    make(ready.folder)
    ended = evaluate(*(str(models["first"]) if argument == "M" else argument for argument in arguments))
    ended.assert_refused(sentence)
    assert not Path("reports").exists()


def test_an_empty_argument_is_refused(project: Project) -> None:
    for arguments in (("--model", "", "--data", "pets"), ("--model", "models", "--data=", "--output", "out")):
        ended = evaluate(*arguments)
        assert ended.code == 2 and "is empty; is a variable of the shell unset?" in ended.err


def test_the_script_takes_flags_or_runs_the_stage(project: Project) -> None:
    """With a flag it parses its own arguments; without one, Hydra does."""
    command = [sys.executable, SRC / "evaluate.py"]
    ended = [
        subprocess.run([*command, argument], cwd=project.folder, capture_output=True, text=True, check=False)
        for argument in ("--data=pets", "seed=x")
    ]
    assert [end.returncode for end in ended] == [2, 2]
    assert ended[0].stderr.startswith("--model is missing") and ended[1].stderr.startswith("seed=x")
