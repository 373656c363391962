"""A thousand classes: `evaluate` takes little memory, and its report and figures stay small."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.memory import peaks
from helpers.workspace import workspace_of_tree

CLASSES, IMAGES = 1000, 20
# Bytes: memory of `evaluate` that no file stands behind, the report page, and each figure.
MEMORY, REPORT, FIGURE = 1_500_000_000, 3_000_000, 3_000_000


def draw_all(folder: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(CLASSES):
        (folder / f"class {number:04}").mkdir(parents=True)
        color = random.integers(0, 156, 3)
        for image in range(IMAGES):
            pixels = (random.integers(0, 100, (32, 32, 3)) + color).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class {number:04}" / f"{image}.bmp")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_evaluate_stays_small(tmp_path: Path) -> None:
    draw_all(tmp_path / "images")
    workspace = workspace_of_tree(tmp_path / "workspace")
    workspace.set_params(image_dir=str(tmp_path / "images"), experiment="custom_images")
    workspace.set_params(**{"data.size": 32, "trainer.max_epochs": 1, "trainer.batch_size": 256})
    for stage in ("download", "preprocess", "train"):
        workspace.run("python", f"src/{stage}.py")
    command = workspace.start("python", "src/evaluate.py")
    found = peaks(command)
    command.end()
    reports = workspace.root / "reports"
    sizes = {path.name: path.stat().st_size for path in reports.iterdir()}
    print(found, sizes)
    assert 0 < found["evaluate"] < MEMORY
    assert sizes["report.html"] < REPORT and sizes["metrics.json"] < 10_000
    assert {name for name, size in sizes.items() if name.endswith(".png") and size >= FIGURE} == set()
    for name in ("confusion.png", "samples.png"):
        with Image.open(reports / name) as figure:
            assert max(figure.size) < 3000, name
    assert len(workspace.classes()) == CLASSES
