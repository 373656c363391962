"""Filters as images on one scale."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from cifar_pipeline.reporting.image_figures import first_layer_figure


def sheet(figure: Figure) -> np.ndarray:
    (axes,) = figure.axes
    return np.asarray(axes.get_images()[0].get_array())


def test_the_scale_is_common_and_symmetric() -> None:
    weights = np.zeros((2, 3, 1, 1))
    weights[0, :, 0, 0] = [-2.0, 0.0, 1.0]
    figure = first_layer_figure(weights, "LeNet on digits")
    colours = {tuple(int(level) for level in pixel) for row in sheet(figure) for pixel in row}
    # -2 is the largest magnitude, so black; 0 is middle grey in both filters; 1 is half the way up.
    assert colours == {(255, 255, 255), (0, 128, 191), (128, 128, 128)}
    assert "middle grey is 0, the ends are -2 and 2" in figure.axes[0].get_xlabel()


@pytest.mark.parametrize(
    ("shape", "rows", "columns", "says"),
    [
        ((6, 3, 5, 5), 1, 6, "a colour image"),
        ((64, 3, 3, 3), 4, 16, "a colour image"),
        ((7, 1, 5, 5), 1, 7, "a grey plane"),
        ((13, 1, 5, 5), 2, 8, "a grey plane"),
        ((24, 12, 2, 2), 12, 24, "a column of grey planes"),
        ((2, 4, 3, 3), 2, 4, "a row of grey planes"),
        ((1, 1, 1, 1), 1, 1, "a grey plane"),
    ],
)
def test_every_filter_has_its_place(shape: tuple[int, ...], rows: int, columns: int, says: str) -> None:
    figure = first_layer_figure(np.random.default_rng(0).normal(size=shape), "LeNet on digits")
    assert tuple(figure.axes[0].get_images()[0].get_extent()) == (0, columns, rows, 0)
    assert f"each filter is {says}" in figure.axes[0].get_xlabel()


def test_planes_of_a_filter_stand_in_its_column() -> None:
    weights = np.zeros((3, 2, 1, 1))
    weights[2, 1] = 1.0
    drawn = sheet(first_layer_figure(weights, "LeNet on digits"))
    height, width = drawn.shape[0] // 2, drawn.shape[1] // 3
    assert drawn[height + height // 2, 2 * width + width // 2, 0] == 255
    assert drawn[height // 2, 2 * width + width // 2, 0] == 128


def test_filters_of_nothing_but_zeros_are_grey() -> None:
    assert set(np.unique(sheet(first_layer_figure(np.zeros((2, 3, 2, 2)), "LeNet on digits")))) == {128, 255}


def test_a_network_without_filters_says_so() -> None:
    figure = first_layer_figure(np.zeros((0, 3, 1, 1)), "LeNet on digits")
    assert [text.get_text() for text in figure.axes[0].metadata] == [
        "No filters: the network's first layer is no convolution."
    ]


@pytest.mark.parametrize("weights", [np.zeros((2, 3, 3)), np.full((1, 3, 2, 2), np.nan)])
def test_refuses_what_is_no_filter(weights: np.ndarray) -> None:
    with pytest.raises(ValueError, match="Filters must be"):
        first_layer_figure(weights, "LeNet on digits")
