"""Names of classes and files that would act on a terminal, a spreadsheet, a page or a figure go through every stage."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_pipeline.reporting.tables import read_rows
from helpers.workspace import Workspace, workspace_of_tree

CLASSES = ("\x1b[31mred\x07", "\u202etxt.exe", r"$x_1$ \alpha $", '<b>&"', "=1+1, 2", "-minus", "@at")
FILES = ("\x1b]0;owned\x07.png", "\u202egnp.png", "$y_{.png", "<i>&'.png", "=2+2, 3.png", "@b.png", "-c.png")
UNDECODABLE = "caf\udce9.png"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
OUTPUTS = ("reports", "data/processed", "models", "composed.yaml")


@pytest.fixture
def hostile(tmp_path: Path) -> Workspace:
    """A workspace with seven images of each class, small enough to train on at once."""
    workspace = workspace_of_tree(tmp_path / "workspace")
    workspace.edit("params.yaml", "data: null", "data: image_folder")
    workspace.edit("params.yaml", "experiment: tutorial", "experiment: debug")
    numbers = np.random.default_rng(0)
    for label in CLASSES:
        folder = workspace.root / "images" / label
        folder.mkdir(parents=True)
        for name in FILES:
            Image.fromarray(numbers.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / name, format="png")
    return workspace


def raw_in(workspace: Workspace) -> list[str]:
    """The text files of the results that hold a character that acts, or are no UTF-8."""
    found = []
    for output in OUTPUTS:
        below = workspace.root / output
        for path in [below] if below.is_file() else sorted(below.rglob("*")):
            if path.suffix in {".csv", ".json", ".html", ".yaml", ".md", ".txt"} and path.is_file():
                found += [f"{path}: {one!a}" for one in set(RAW.findall(path.read_bytes().decode()))]
    return found


@pytest.mark.long
def test_they_are_shown_and_written_escaped_and_read_back(hostile: Workspace) -> None:
    odd = hostile.root / "images" / CLASSES[0] / UNDECODABLE
    shutil.copy(odd.parent / FILES[0], odd)
    said = hostile.run("python", "src/download.py", code=2)
    assert r"\udce9.png: this name is not UTF-8, which DVC cannot read: rename it." in said
    odd.rename(hostile.root / UNDECODABLE)
    for stage in ("download", "preprocess", "train", "evaluate"):
        said += hostile.run("python", f"src/{stage}.py")
    assert hostile.json("data/processed/dataset.json")["classes"] == sorted(CLASSES)
    rows = list(read_rows(hostile.root / "reports" / "predictions.csv"))
    assert rows[0] == ["index", "label", "prediction", "probability"]
    assert {row[1] for row in rows[1:]} == set(CLASSES)
    assert hostile.classes() == sorted(CLASSES)
    page = hostile.read("reports/report.html")
    assert "&lt;b&gt;&amp;" in page and "<b>&" not in page

    folder = f"images/{CLASSES[0]}"
    files = [UNDECODABLE, *(f"{folder}/{name}" for name in FILES)]
    said += hostile.run("python", "src/predict.py", folder)
    lines = hostile.run("python", "src/predict.py", "--json", *files).splitlines()
    assert sorted(json.loads(line)["file"] for line in lines) == sorted(files)
    said += "\n".join(lines)
    said += hostile.run("python", "src/predict.py", "--csv", "answers.csv", *files)
    assert sorted(row[0] for row in list(read_rows(hostile.root / "answers.csv"))[1:]) == sorted(files)
    assert "Warning: Glyph" not in said
    assert [line for line in said.split("\n") if RAW.search(line)] == []
    assert RAW.findall(hostile.read("answers.csv")) == []
    assert raw_in(hostile) == []
    run = hostile.runs()[-1]
    assert RAW.findall(str({**run.data.tags, **run.data.params, **run.data.metrics})) == []
