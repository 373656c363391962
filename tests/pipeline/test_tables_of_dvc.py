"""The tables of parameters, metrics and experiments fit a screen, with 10 and with 100 classes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_pipeline.utils.text import flatten_dict
from helpers.workspace import Workspace, make_repository, sentences, workspace_of_tree

WIDTH, LINES = 120, 40
IMAGES_PER_CLASS = 10


def lines_that_fit(output: str) -> list[list[str]]:
    """Return the words of the lines of a table, which must fit a screen."""
    lines = output.splitlines()
    assert 1 < len(lines) <= LINES and max(map(len, lines)) <= WIDTH, output
    return [line.split() for line in lines if line.split()]


def experiments(workspace: Workspace) -> list[list[str]]:
    output = workspace.run("env", f"COLUMNS={WIDTH}", "python", "src/report.py", "experiments")
    return lines_that_fit("\n".join(sentences(output)))


def hundred_classes(folder: Path) -> Workspace:
    """A clone whose images have 100 classes with long names, after its first `dvc repro`."""
    workspace, random = workspace_of_tree(folder), np.random.default_rng(0)
    for number in range(100):
        directory = workspace.root / "images" / f"a class of images with the number {number}"
        directory.mkdir(parents=True)
        for image in range(IMAGES_PER_CLASS):
            Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(directory / f"{image}.png")
    workspace.set_params(data="image_folder", experiment="debug")
    make_repository(workspace)
    workspace.dvc("repro")
    workspace.commit()
    return workspace


@pytest.mark.long
def test_the_differences_after_one_changed_value_fit_a_screen(copy: Workspace) -> None:
    copy.set_params(**{"optimizer.lr": 0.01})
    copy.dvc("repro", "configure")
    rows = lines_that_fit(copy.dvc("params", "diff"))
    assert {(path, key) for path, key, *_ in rows[1:]} == {
        ("params.yaml", "overrides.optimizer.lr"),
        ("composed.yaml", "train.optimizer.lr"),
    }
    # As after an evaluation in which all numbers are others.
    metrics = copy.json("reports/metrics.json")
    changed = {split: {name: value + 0.123456 for name, value in values.items()} for split, values in metrics.items()}
    copy.write("reports/metrics.json", json.dumps(changed))
    rows = lines_that_fit(copy.dvc("metrics", "diff"))
    assert {row[1] for row in rows[1:]} == set(flatten_dict(metrics)) and len(rows) == 1 + 8


def test_without_experiments_the_command_for_the_first_is_printed(clone: Workspace) -> None:
    *_, workspace, main, hint = experiments(clone)
    accuracy = f"{100 * clone.json('reports/metrics.json')['test']['accuracy']:.2f}"
    assert (workspace[:2], main[:2]) == (["workspace", accuracy], ["main", accuracy])
    assert " ".join(hint) == "No experiments yet: `dvc exp run -S optimizer=adam` runs one."


@pytest.mark.long
@pytest.mark.parametrize("classes", [10, 100])
def test_experiments_are_compared_on_a_screen(classes: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    workspace = hundred_classes(tmp_path) if classes == 100 else request.getfixturevalue("copy")
    assert len(workspace.classes()) == classes
    workspace.dvc("exp", "run", "--name", "adam", "-S", "optimizer=adam")
    workspace.dvc("exp", "run", "--name", "slower", "-S", "++overrides.optimizer.lr=0.0005")
    lines_that_fit(workspace.dvc("params", "diff"))
    lines_that_fit(workspace.dvc("metrics", "diff"))
    head, _, *rows = experiments(workspace)
    assert head == ["experiment", "test/accuracy", "val/accuracy", "training", "changes", "to", "main"]
    metrics = workspace.json("reports/metrics.json")
    accuracies = [f"{100 * metrics[split]['accuracy']:.2f}" for split in ("test", "val")]
    by_name = {name: cells for name, *cells in rows}
    # The second experiment started from the workspace, which the first one had changed.
    changes = {"workspace": 2, "main": 0, "slower": 2, "adam": 1}
    assert by_name.keys() == changes.keys() and len(rows) == len(changes)
    for name, count in changes.items():
        cells = by_name[name]
        assert [cell for cell in cells if "=" in cell] == ["optimizer=adam", "optimizer.lr=0.0005"][:count]
    assert by_name["workspace"][:4:2] == by_name["slower"][:4:2] == accuracies
    workspace.dvc("plots", "show", "--out", str(tmp_path / "plots"))
    page = (tmp_path / "plots" / "index.html").read_text()
    assert "F1 by class on the test split" in page and json.dumps(workspace.classes()[-1]) in page
