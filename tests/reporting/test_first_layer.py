"""Filters of the first layer, drawn on one scale."""

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
    colors = {tuple(int(level) for level in pixel) for row in sheet(figure) for pixel in row}
    # -2 has the largest absolute value, so it is black; 0 is medium gray; 1 is halfway up.
    assert colors == {(255, 255, 255), (0, 128, 191), (128, 128, 128)}
    assert "medium gray is 0, the range is -2 to 2" in figure.axes[0].get_xlabel()


@pytest.mark.parametrize(
    ("shape", "rows", "columns", "layout"),
    [
        ((6, 3, 5, 5), 1, 6, "a color image"),
        ((64, 3, 3, 3), 4, 16, "a color image"),
        ((7, 1, 5, 5), 1, 7, "a gray plane"),
        ((13, 1, 5, 5), 2, 8, "a gray plane"),
        ((24, 12, 2, 2), 12, 24, "a column of gray planes"),
        ((2, 4, 3, 3), 2, 4, "a row of gray planes"),
        ((1, 1, 1, 1), 1, 1, "a gray plane"),
    ],
)
def test_filters_are_laid_out_by_their_shape(shape: tuple[int, ...], rows: int, columns: int, layout: str) -> None:
    figure = first_layer_figure(np.random.default_rng(0).normal(size=shape), "LeNet on digits")
    assert tuple(figure.axes[0].get_images()[0].get_extent()) == (0, columns, rows, 0)
    assert f"each filter is {layout}" in figure.axes[0].get_xlabel()


def test_planes_of_a_filter_are_in_its_column() -> None:
    weights = np.zeros((3, 2, 1, 1))
    weights[2, 1] = 1.0
    grid = sheet(first_layer_figure(weights, "LeNet on digits"))
    height, width = grid.shape[0] // 2, grid.shape[1] // 3
    assert grid[height + height // 2, 2 * width + width // 2, 0] == 255
    assert grid[height // 2, 2 * width + width // 2, 0] == 128


def test_filters_of_zeros_are_gray() -> None:
    assert set(np.unique(sheet(first_layer_figure(np.zeros((2, 3, 2, 2)), "LeNet on digits")))) == {128, 255}


def test_a_network_without_filters_gives_a_message() -> None:
    figure = first_layer_figure(np.zeros((0, 3, 1, 1)), "LeNet on digits")
    assert [text.get_text() for text in figure.axes[0].texts] == ["No filters: the first layer is not a convolution."]


@pytest.mark.parametrize("weights", [np.zeros((2, 3, 3)), np.full((1, 3, 2, 2), np.nan)])
def test_weights_that_are_not_filters_are_rejected(weights: np.ndarray) -> None:
    with pytest.raises(ValueError, match="Filters must be"):
        first_layer_figure(weights, "LeNet on digits")
