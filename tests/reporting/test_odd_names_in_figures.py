"""Class names and sweep values with control characters or math notation are drawn escaped."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from cifar_pipeline.reporting.image_figures import contact_sheet, error_figure
from cifar_pipeline.reporting.plots import confusion_figure
from cifar_pipeline.reporting.style import save
from cifar_pipeline.reporting.sweep_tables import shorten_value

NAMES = ["\x1b[31mred\x07", r"$x_1$ \alpha $", "\udcff\u202e"]
ESCAPED = [r"\x1b[31mred\x07", r"$x_1$ \alpha $", r"\udcff\u202e"]
LABELS, PREDICTIONS = np.array([0, 1, 2]), np.array([1, 2, 0])
IMAGES = np.zeros((3, 4, 4, 3), np.uint8)
FIGURES = {
    "samples": lambda: contact_sheet(IMAGES, LABELS, NAMES, NAMES[0]),
    "confusion": lambda: confusion_figure(LABELS, PREDICTIONS, NAMES, NAMES[0]),
    "errors": lambda: error_figure(IMAGES, LABELS, PREDICTIONS, np.ones(3), NAMES, 3, NAMES[0]),
}


def all_text(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


@pytest.mark.parametrize("name", FIGURES)
def test_every_name_is_in_the_figure_escaped(name: str, tmp_path: Path) -> None:
    figure = FIGURES[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns about characters missing from the font
        save(figure, tmp_path / "figure.png")
    text = all_text(figure)
    assert all(escaped in text for escaped in ESCAPED)
    assert not {"\x1b", "\x07", "\udcff", "\u202e"} & set(text)


def test_the_values_of_a_sweep_are_escaped_for_its_figures() -> None:
    assert [shorten_value(name) for name in NAMES] == ESCAPED
