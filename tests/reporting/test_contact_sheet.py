"""Rows, order and empty cells of the contact sheet."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from sample_evaluation import OPTIONS

from cifar_pipeline.reporting.image_figures import contact_sheet


def numbered(count: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Make images of which all pixels of the i-th are i."""
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    return images, np.arange(count) % classes


def levels(figure: Figure, rows: int, columns: int, panel: int = 0) -> list[list[int]]:
    sheet = np.asarray(figure.axes[panel].get_images()[0].get_array())
    height, width = sheet.shape[0] // rows, sheet.shape[1] // columns
    return [[int(level) for level in row] for row in sheet[height // 2 :: height, width // 2 :: width, 0]]


def names(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.get_yticklabels()]


def test_the_first_ten_of_each_class_in_order() -> None:
    images, labels = numbered(40, 3)
    figure = contact_sheet(images, labels, ["cat", "dog", "ship"], "digits")
    assert levels(figure, 3, 10) == [list(range(k, 30, 3)) for k in range(3)]
    assert names(figure) == ["cat", "dog", "ship"]


def test_augmented_images_stand_beside_their_originals() -> None:
    images, labels = numbered(22, 3)
    seen = []

    def augment(originals: np.ndarray, classes: np.ndarray) -> np.ndarray:
        seen.append(classes.tolist())
        return np.repeat(np.repeat(originals + 100, 2, axis=1), 2, axis=2)

    figure = contact_sheet(images, labels, ["cat", "dog", "ship"], "digits", samples=4, augment=augment)
    assert levels(figure, 3, 5) == [[k, k + 3, 255, k + 100, k + 103] for k in range(3)]
    assert seen == [[0, 0, 1, 1, 2, 2]]
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["original", "augmented"]


def test_a_class_with_few_images_leaves_cells_white() -> None:
    images, _ = numbered(4, 2)
    figure = contact_sheet(images, np.array([0, 0, 0, 2]), ["cat", "dog", "ship"], "digits")
    assert levels(figure, 3, 3) == [[0, 1, 2], [255, 255, 255], [3, 255, 255]]


def test_a_hundred_classes_continue_in_panels_to_the_right() -> None:
    images, labels = numbered(200, 100)
    classes = [f"class {k}" for k in range(100)]
    figure = contact_sheet(images, labels, classes, "digits")
    assert len(figure.axes) == 5 and names(figure) == classes
    assert levels(figure, 20, 2, panel=4)[-1] == [99, 199]
    width, height = figure.get_size_inches()
    assert width < 32 and height < 16


def test_classes_that_do_not_fill_the_last_panel_leave_it_white() -> None:
    images, labels = numbered(50, 25)
    figure = contact_sheet(images, labels, [f"class {k}" for k in range(25)], "digits")
    assert levels(figure, 20, 2, panel=1)[4:6] == [[24, 49], [255, 255]]


@pytest.mark.parametrize("shape", [(6, 4, 4), (6, 4, 4, 1), (6, 4, 6, 3)])
def test_gray_and_rectangular_images_are_drawn(shape: tuple[int, ...]) -> None:
    figure = contact_sheet(np.zeros(shape, np.uint8), np.arange(6) % 2, ["cat", "dog"], "digits")
    assert levels(figure, 2, 3) == [[0, 0, 0]] * 2


def test_memory_mapped_images_are_drawn_alike(tmp_path: Path) -> None:
    images, labels = numbered(40, 4)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    classes = ["a", "b", "c", "d"]
    assert levels(contact_sheet(mapped, labels, classes, "digits"), 4, 10) == levels(
        contact_sheet(images, labels, classes, "digits"), 4, 10
    )


def test_float_images_are_rejected() -> None:
    with pytest.raises(ValueError, match="uint8"):
        contact_sheet(np.zeros((2, 4, 4, 3)), np.array([0, 1]), ["cat", "dog"], "digits")


def test_of_many_classes_the_seed_chooses_some() -> None:
    images, labels = numbered(200, 100)
    classes = [f"class {k}" for k in range(100)]
    chosen = OPTIONS.choose_samples(classes)
    figure = contact_sheet(images, labels, classes, "digits", shown=chosen)
    assert len(set(chosen)) == 20 and names(figure) == [classes[k] for k in chosen]
    assert levels(figure, 20, 2) == [[k, k + 100] for k in chosen]
    assert chosen == OPTIONS.choose_samples(classes) != replace(OPTIONS, sample_seed=1).choose_samples(classes)
    assert OPTIONS.choose_samples(classes[:39]) == list(range(39))


def test_large_images_are_reduced() -> None:
    images = np.repeat(np.repeat(numbered(4, 2)[0], 500, axis=1), 300, axis=2)
    figure = contact_sheet(images, np.arange(4) % 2, ["cat", "dog"], "digits")
    assert levels(figure, 2, 2) == [[0, 2], [1, 3]]
    assert np.asarray(figure.axes[0].get_images()[0].get_array()).nbytes < 1_000_000
