"""Properties of all figures: reproducible bytes, atomic files, readable titles, no global state."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cifar_pipeline.reporting.image_figures import contact_sheet, error_figure, first_layer_figure
from cifar_pipeline.reporting.plots import confusion_figure, learning_curves
from cifar_pipeline.reporting.style import new_figure, save
from helpers.source_tree import SRC

TITLE = "LeNet on digits"
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
LABELS, PREDICTIONS = np.arange(8) % 2, np.ones(8, np.int64)
HISTORY = pd.DataFrame({"epoch": [1, 2], "train/loss": [2.0, 1.0], "train/accuracy": [0.2, 0.6], "lr": [0.1, 0.1]})

FIGURES: dict[str, Callable[[], Figure]] = {
    "curves": lambda: learning_curves(HISTORY, TITLE, "val/accuracy", "max"),
    "confusion": lambda: confusion_figure(LABELS, PREDICTIONS, ["cat", "dog"], TITLE),
    "filters": lambda: first_layer_figure(np.linspace(-1, 1, 150).reshape(2, 3, 5, 5), TITLE),
    "errors": lambda: error_figure(IMAGES, LABELS, PREDICTIONS, np.linspace(0, 1, 8), ["cat", "dog"], 3, TITLE),
    "samples": lambda: contact_sheet(IMAGES, LABELS, ["cat", "dog"], TITLE),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_made_and_saved_twice_has_equal_bytes(name: str, tmp_path: Path) -> None:
    for file in ("first.png", "second.png"):
        save(FIGURES[name](), tmp_path / file, dpi=50)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


@pytest.mark.parametrize("name", FIGURES)
def test_every_title_names_the_data(name: str) -> None:
    assert FIGURES[name]().get_suptitle() == TITLE


def test_the_file_contains_neither_date_nor_version(tmp_path: Path) -> None:
    save(new_figure(6, 2, TITLE), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert not {"Software", "Creation Time", "date"} & set(image.info)
        assert image.size == (900, 300)


def test_figures_drawn_in_threads_are_equal(tmp_path: Path) -> None:
    save(FIGURES["curves"](), tmp_path / "single.png", dpi=50)

    def draw(number: int) -> None:
        save(FIGURES["curves"](), tmp_path / f"{number}.png", dpi=50)

    threads = [threading.Thread(target=draw, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {path.read_bytes() for path in tmp_path.glob("*.png")} == {(tmp_path / "single.png").read_bytes()}


def test_a_failed_save_leaves_the_old_image(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    save(new_figure(6, 2, TITLE), path)
    before = path.read_bytes()
    broken = new_figure(6, 2, TITLE)
    broken.savefig = lambda *_, **__: 1 / 0  # type: ignore[assignment, method-assign]
    with pytest.raises(ZeroDivisionError):
        save(broken, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("width", [6.0, 13.0, 25.0])
def test_a_long_title_stays_on_the_figure(width: float) -> None:
    figure = new_figure(width, 4, "A network with a long name on handwritten digits (scikit-learn), the fallback " * 2)
    figure.draw_without_rendering()
    assert figure._suptitle.get_window_extent().x1 <= figure.bbox.x1  # type: ignore[attr-defined]


def test_dollar_signs_in_a_title_are_not_math(tmp_path: Path) -> None:
    save(new_figure(6, 2, "costs $1 and $x^$"), tmp_path / "a.png", dpi=50)


def test_drawing_needs_neither_torch_nor_pyplot() -> None:
    # `preprocess` draws the contact sheet, and must not import torch, lightning or mlflow.
    code = (
        "import sys, cifar_pipeline.reporting.image_figures, cifar_pipeline.reporting.style\n"
        "heavy = {'torch', 'lightning', 'mlflow', 'pandas', 'matplotlib.pyplot', 'hydra'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=SRC, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
