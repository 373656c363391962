"""100,000 images, more bytes than each process may take, go all the way from their files to a prediction."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.memory import peaks
from helpers.workspace import Workspace

IMAGES = 100_000
SIZE = 72
# Bytes of memory that no file stands behind, in any one process; docs/custom-images.md states it.
LIMIT = 1_100_000_000
# The memory of a batch depends on the images' size, not on their number.
BATCH_SIZES = {"trainer.eval_batch_size": 250, "evaluation.batch_size": 250}
CLASSES = ("dark", "middling", "bright")


def draw_all(folder: Path) -> None:
    """Small images of odd sizes, each one of its own, which `preprocess` brings to SIZE."""
    random = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for number in range(IMAGES):
        label = number % len(CLASSES)
        height, width = 12 + number % 7, 12 + number % 5
        pixels = random.integers(70 * label, 70 * label + 100, (height, width, 3), np.uint8)
        packed = io.BytesIO()
        Image.fromarray(pixels).save(packed, "BMP")
        (folder / CLASSES[label] / f"{number:06}.bmp").write_bytes(packed.getvalue())


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_no_stage_takes_more_memory_than_the_limit(copy: Workspace, tmp_path: Path) -> None:
    draw_all(tmp_path / "many")
    values = {"data.size": SIZE, "data.resize_mode": "pad", "trainer.max_epochs": 1, "trainer.batch_size": 256}
    copy.set_params(image_dir=str(tmp_path / "many"), experiment="custom_images", **values, **BATCH_SIZES)
    command = copy.start("dvc", "repro")
    found = peaks(command)
    said = command.end()
    print(found)
    dataset = copy.json("data/processed/dataset.json")
    assert sum(dataset["sizes"].values()) == IMAGES
    assert dataset["sizes"]["train"] * SIZE**2 * 3 > LIMIT
    assert set(found) >= {"preprocess", "train", "evaluate"}
    assert {stage: bytes_ for stage, bytes_ in found.items() if bytes_ >= LIMIT} == {}
    assert "Test accuracy: " in said and copy.json("reports/metrics.json")["test"]["accuracy"] > 0.9
    assert "trained on image_folder" in copy.run(
        "python", "src/predict.py", str(tmp_path / "many" / "dark" / "000000.bmp")
    )
