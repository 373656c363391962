"""Panels, lines and marks of the learning curves."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cifar_pipeline.reporting.plots import learning_curves
from cifar_pipeline.reporting.style import save


def history(epochs: int, first: int = 1) -> pd.DataFrame:
    rising = np.linspace(0.2, 0.7, epochs)
    return pd.DataFrame(
        {
            "epoch": np.arange(first, first + epochs),
            "train/loss": 2 - 2 * rising,
            "train/accuracy": rising,
            "val/loss": 2.1 - 2 * rising,
            "val/accuracy": rising - 0.05,
            "lr": 0.001,
            "images_per_second": 9000.0,
        }
    )


def curves(table: pd.DataFrame, monitor: str = "val/accuracy", mode: str = "max") -> Figure:
    return learning_curves(table, "LeNet on digits", monitor, mode)


def lines(axes: Axes) -> dict[str, list[float]]:
    return {str(line.get_label()): list(line.get_ydata()) for line in axes.get_lines()}  # type: ignore[arg-type]


def labels(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def test_loss_accuracy_and_learning_rate_are_drawn() -> None:
    table = history(5)
    loss, accuracy, rate = curves(table).axes
    assert [axes.get_title(loc="left") for axes in (loss, accuracy, rate)] == ["Loss", "Accuracy", "Learning rate"]
    assert lines(loss)["train"] == list(table["train/loss"])
    assert lines(loss)["validation"] == list(table["val/loss"])
    assert lines(accuracy)["validation"] == list(table["val/accuracy"])
    assert lines(rate)["lr"] == list(table["lr"])
    assert labels(loss) == labels(accuracy) == ["train", "validation"]


def test_the_first_of_the_best_epochs_is_marked() -> None:
    table = history(4)
    table["val/accuracy"] = [0.2, 0.55, 0.55, 0.3]
    figure = curves(table)
    assert figure.axes[1].get_title(loc="right") == "best validation 55.0 %, epoch 2"
    for axes in figure.axes[:2]:
        vertical = [line for line in axes.get_lines() if list(line.get_xdata()) == [2, 2]]  # type: ignore[arg-type]
        assert len(vertical) == 1


@pytest.mark.parametrize(
    ("monitor", "mode", "epoch", "panel", "title"),
    [
        ("val/loss", "min", 3, 0, "best validation 0.9000, epoch 3"),
        ("train/accuracy", "max", 4, 1, "best training 70.0 %, epoch 4"),
        ("val/f1_macro", "max", 2, 2, "best validation 0.6000, epoch 2"),
        ("val/balanced_accuracy", "max", 3, 2, "best validation 66.0 %, epoch 3"),
        ("own/distance", "min", 3, 2, "best 3.0000, epoch 3"),
    ],
)
def test_the_best_epoch_is_that_of_the_monitored_metric(
    monitor: str, mode: str, epoch: int, panel: int, title: str
) -> None:
    table = history(4)
    table["val/loss"] = [1.5, 1.0, 0.9, 1.2]
    others = {"val/f1_macro": [0.2, 0.6, 0.5, 0.3], "val/balanced_accuracy": [0.3, 0.6, 0.66, 0.5]}
    figure = curves(table.assign(**others, **{"own/distance": [9.0, 8.0, 3.0, 4.0]}), monitor, mode)
    assert [axes.get_title(loc="right") for axes in figure.axes if axes.get_title(loc="right")] == [title]
    assert figure.axes[panel].get_title(loc="right") == title
    for axes in figure.axes[:-1]:
        vertical = [line for line in axes.get_lines() if list(line.get_xdata()) == [epoch, epoch]]  # type: ignore[arg-type]
        assert len(vertical) == 1
    # Chosen metrics that are not the monitor share a panel.
    drawn = {label for axes in figure.axes[2:-1] for label in labels(axes)}
    assert drawn >= {"validation F1 macro", "validation balanced accuracy"}
    assert ("own distance" in drawn) == (monitor == "own/distance")
    assert len(figure.axes) == (5 if panel == 2 else 4)


@pytest.mark.parametrize("missing", ["columns", "values"])
def test_without_validation_there_is_no_best(missing: str, tmp_path: Path) -> None:
    table = history(3)
    if missing == "columns":
        table = table.drop(columns=["val/loss", "val/accuracy"])
    else:
        table[["val/loss", "val/accuracy"]] = np.nan
    figure = curves(table)
    assert labels(figure.axes[0]) == ["train"]
    assert figure.axes[1].get_title(loc="right") == ""
    save(figure, tmp_path / "curves.png", dpi=50)


def test_one_epoch_shows_points_above_zero(tmp_path: Path) -> None:
    figure = curves(history(1, first=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(figure, tmp_path / "curves.png", dpi=50)
    for axes in figure.axes:
        assert axes.get_ylim()[0] == 0 and axes.get_xlim() == (-0.5, 0.5)
    assert all(line.get_marker() == "o" for line in figure.axes[0].get_lines() if line.get_label() == "train")


def test_epochs_without_validation_are_skipped() -> None:
    table = history(4)
    table.loc[[0, 2], ["val/loss", "val/accuracy"]] = np.nan
    loss = curves(table).axes[0]
    assert lines(loss)["validation"] == [table["val/loss"][1], table["val/loss"][3]]


def test_a_csv_with_empty_validation_cells_is_drawn(tmp_path: Path) -> None:
    history(2).assign(**{"val/loss": "", "val/accuracy": ""}).to_csv(tmp_path / "history.csv", index=False)
    figure = curves(pd.read_csv(tmp_path / "history.csv"))
    assert labels(figure.axes[0]) == ["train"]


def test_every_label_is_inside_the_figure() -> None:
    figure = curves(history(200))
    figure.draw_without_rendering()
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert box is not None and box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
