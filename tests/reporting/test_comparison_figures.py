"""Figures of a sweep: heat map, lines, dot plot and curves."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from cifar_pipeline.reporting.style import OTHER_COLOR, save
from cifar_pipeline.reporting.sweep_comparison import Comparison, all_numeric, prefers_log_scale
from cifar_pipeline.reporting.sweep_plots import curves, spread_labels
from cifar_pipeline.sweeps.summary import figure, write

NAN = float("nan")


def sweep(swept: tuple[str, ...], results: Mapping[Any, float | str], **fields: Any) -> Comparison:
    """Make a comparison from each trial's values and its accuracy, or its status if it has none."""
    trials, histories = [], {}
    for index, (values, result) in enumerate(results.items()):
        accuracy, status = (NAN, result) if isinstance(result, str) else (result, "FINISHED")
        metrics = {"val/accuracy": accuracy, "val/loss": 2 - accuracy, "seconds": 5.0}
        trials.append({"run_id": f"r{index}", "name": "-".join(values), "status": status, "reason": "", "reused": False}
                      | dict(zip(swept, values, strict=False)) | metrics)  # fmt: skip
        end = 0.1 if np.isnan(accuracy) else accuracy
        epochs = np.arange(1, 4)
        histories[f"r{index}"] = pd.DataFrame({"epoch": epochs, "val/accuracy": end * epochs / 3, "val/loss": 2 - end})
    return Comparison("a sweep on digits", pd.DataFrame(trials), swept, histories, significance_level=0.05, **fields)


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def ticks(axes: Axes) -> tuple[list[str], list[str]]:
    return (
        [label.get_text() for label in axes.get_xticklabels()],
        [label.get_text() for label in axes.get_yticklabels()],
    )


def drawn(figure: Figure) -> Axes:
    figure.draw_without_rendering()
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert box is not None and box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    return figure.axes[0]


def test_two_swept_columns_make_a_heat_map() -> None:
    results: dict[tuple[str, ...], float | str] = {("sgd", "mse"): 0.456, ("sgd", "ce"): 0.5, ("adam", "mse"): "FAILED"}
    axes = drawn(figure(sweep(("optimizer", "loss"), results)))
    assert ticks(axes) == (["mse", "ce"], ["sgd", "adam"])
    placed = {(round(text.get_position()[0]), round(text.get_position()[1])): text.get_text() for text in axes.texts}
    assert placed == {(0, 0): "45.6", (1, 0): "50.0", (0, 1): "failed"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("loss", "optimizer")
    framed = [patch.get_x() for patch in axes.patches if patch.get_linewidth() > 2]  # type: ignore[attr-defined]
    assert framed == [pytest.approx(0.52)]


def test_cells_have_mean_standard_deviation_and_missing_seeds() -> None:
    results: dict[tuple[str, ...], float | str] = {}
    cells: dict[tuple[str, str], tuple[float | str, ...]] = {
        ("sgd", "mse"): (0.5, 0.52), ("sgd", "ce"): (0.6, "FAILED"), ("adam", "mse"): ("FAILED", "KILLED"),
        ("adam", "ce"): (0.4, "RUNNING"),
    }  # fmt: skip
    for values, seeds in cells.items():
        results |= {(*values, str(seed)): result for seed, result in enumerate(seeds)}
    axes = drawn(figure(sweep(("optimizer", "loss", "seed"), results)))
    assert texts(axes) == ["51.0", "± 1.41", "60.0", "1 failed", "40.0", "1 missing", "failed, killed"]
    assert axes.get_title(loc="left") == "Validation accuracy in %, mean ± standard deviation over 2 seeds"


def test_numbers_of_a_heat_map_are_sorted() -> None:
    values = [("10", "b"), ("2", "b"), ("10", "a"), ("2", "a")]
    axes = drawn(figure(sweep(("model.width", "loss"), {value: 0.1 * i for i, value in enumerate(values, 1)})))
    assert ticks(axes) == (["b", "a"], ["2", "10"])


def test_the_darkest_cell_has_the_lowest_loss() -> None:
    comparison = sweep(("a", "b"), {("x", "y"): 0.2, ("x", "z"): 0.6, ("w", "y"): 0.4, ("w", "z"): 0.3})
    cells = drawn(figure(dataclasses.replace(comparison, metric="val/loss"))).patches
    brightness = [sum(to_rgb(cell.get_facecolor())) for cell in cells if cell.get_linewidth() == 0]
    assert brightness == sorted(brightness)  # best first


@pytest.mark.parametrize(
    ("numbers", "logarithmic"),
    [
        (["0.1", "0.001"], True),
        (["1", "20"], False),
        (["1", "20.1"], True),
        (["0", "100"], False),
        (["-1", "100"], False),
        (["5"], False),
        (["1e-4", "1e-2"], True),
    ],
)
def test_a_swept_number_makes_a_line_on_a_linear_or_logarithmic_axis(numbers: list[str], logarithmic: bool) -> None:
    axes = drawn(figure(sweep(("optimizer.lr",), {(number,): 0.5 for number in numbers})))
    assert axes.get_xscale() == ("log" if logarithmic else "linear")
    assert prefers_log_scale(map(float, numbers)) == logarithmic
    assert axes.get_xlabel() == "optimizer.lr"
    line = next(line for line in axes.get_lines() if line.get_linewidth() == 2 and line.get_linestyle() == "-")
    assert list(line.get_xdata()) == sorted(map(float, numbers))  # type: ignore[arg-type]


def test_a_line_has_means_bars_seeds_and_crosses() -> None:
    seeds: dict[str, tuple[float | str, ...]] = {"0.1": (0.5, 0.6), "0.001": (0.3, 0.3), "1": ("FAILED", "FAILED")}
    results = {(lr, str(seed)): value for lr, values in seeds.items() for seed, value in enumerate(values)}
    axes = drawn(figure(sweep(("optimizer.lr", "seed"), results)))
    (bars,) = axes.containers
    means = bars.lines[0].get_xydata()  # type: ignore[attr-defined]
    assert np.allclose(means, [[0.001, 0.3], [0.1, 0.55]])
    ends = bars.lines[2][0].get_segments()  # type: ignore[attr-defined]
    np.testing.assert_allclose(ends[1][:, 1], [0.55 - np.std([0.5, 0.6], ddof=1), 0.55 + np.std([0.5, 0.6], ddof=1)])
    crosses = [list(line.get_xdata()) for line in axes.get_lines() if line.get_marker() == "x"]  # type: ignore[arg-type]
    assert crosses == [[1.0]]
    assert ticks(axes)[0] == ["0.001", "0.1", "1"]


def test_a_number_swept_in_a_different_range_per_option_makes_a_line_per_option() -> None:
    ranges = {"sgd": ("0.01", "0.03", "0.1"), "adam": ("0.0001", "0.0003", "0.001"), "muon": ("2", "5", "9", "11")}
    results = {(name, lr): 0.5 for name, rates in ranges.items() for lr in rates}
    axes = drawn(figure(sweep(("optimizer", "optimizer.lr"), results)))
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["adam", "muon", "sgd", "best"]


def test_a_text_column_makes_rows_best_first() -> None:
    results: dict[tuple[str, ...], float | str] = {("a",): 0.4, ("b",): "FAILED", ("c",): 0.6}
    axes = drawn(figure(sweep(("optimizer",), results)))
    assert ticks(axes)[1] == ["optimizer", "c        ", "a        ", "b        "]
    assert texts(axes) == ["60.00 %", "40.00 %", "failed"]


def test_three_swept_columns_make_rows_with_all_values() -> None:
    results = {("sgd", "mse", "lenet"): 0.4, ("adam", "mse", "lenet"): 0.5, ("adam", "ce", "lenet"): 0.3}
    axes = drawn(figure(sweep(("optimizer", "loss", "model"), results)))
    assert [row.split() for row in ticks(axes)[1]] == [
        ["optimizer", "loss", "model"], ["adam", "mse", "lenet"], ["sgd", "mse", "lenet"], ["adam", "ce", "lenet"],
    ]  # fmt: skip


def test_seeds_alone_are_a_row_each_with_their_mean() -> None:
    axes = drawn(figure(sweep(("seed",), {("0",): 0.5, ("1",): 0.6})))
    assert [row.strip() for row in ticks(axes)[1]] == ["seed", "1", "0"]
    assert "55.00 ± 7.07 % (2)" in texts(axes)


def test_curves_are_means_with_a_band_and_a_name() -> None:
    results: dict[Any, float | str] = {
        ("sgd", "0"): 0.3,
        ("sgd", "1"): 0.6,
        ("adam", "0"): 0.9,
        ("adam", "1"): "FAILED",
    }
    axes = drawn(curves(sweep(("optimizer", "seed"), results)))
    lines = {
        tuple(np.round(np.asarray(line.get_ydata(), float), 9))
        for line in axes.get_lines()
        if line.get_linewidth() == 2
    }
    assert lines == {(0.15, 0.3, 0.45), (0.3, 0.6, 0.9)}
    assert len(axes.collections) == 1  # the band of sgd's two seeds
    assert texts(axes) == ["sgd", "adam", "optimizer"]


def test_curves_go_as_far_as_all_seeds_did() -> None:
    comparison = sweep(("optimizer", "seed"), {("sgd", "0"): 0.3, ("sgd", "1"): 0.6})
    comparison.histories["r1"] = comparison.histories["r1"].head(2)
    (line,) = [line for line in drawn(curves(comparison)).get_lines() if line.get_linewidth() == 2]
    assert list(line.get_ydata()) == pytest.approx([0.15, 0.3])  # type: ignore[arg-type]


@pytest.mark.parametrize(("number", "colored"), [(12, 12), (13, 8), (40, 8)])
def test_beyond_twelve_curves_only_the_best_have_colors(number: int, colored: int) -> None:
    results = {(f"model_{i}",): i / number for i in range(number)}
    axes = drawn(curves(sweep(("model",), results)))
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) == 3]  # type: ignore[arg-type]
    assert len(lines) == number
    assert sum(to_hex(line.get_color()).upper() != OTHER_COLOR for line in lines) == colored
    names = [word for word in texts(axes) if word.startswith("model_")]
    assert set(names) == {f"model_{i}" for i in range(number - colored, number)}
    looks = {(line.get_color(), line.get_linestyle()) for line in lines if line.get_color() != OTHER_COLOR}
    assert len(looks) == colored


def test_labels_are_spread_within_the_axis() -> None:
    assert spread_labels([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9]
    assert spread_labels([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    for levels in ([0.0, 0.0, 0.01], [0.99, 1.0, 1.0], sorted(np.random.default_rng(0).uniform(0.4, 0.6, 12))):
        moved = np.array(spread_labels(list(levels), 0.05))
        assert np.diff(moved).min() >= 0.05 - 1e-9 and moved.min() >= 0 and moved.max() <= 1 + 1e-9


@pytest.mark.parametrize(
    ("swept", "results"),
    [
        (("optimizer",), {("sgd",): 0.5}),
        (("optimizer",), {("sgd",): "FAILED", ("adam",): "KILLED"}),
        (("optimizer", "seed"), {("sgd", "0"): 0.5}),
        (("seed",), {("0",): 0.5}),
        (("seed",), {("0",): "FAILED"}),
        (("optimizer.lr",), {("0.1",): 0.5}),
        (("optimizer.lr",), {("0.1",): "FAILED", ("0.001",): "RUNNING"}),
        (("a", "b"), {("x", "y"): "FAILED", ("x", "z"): "FAILED"}),
        (("a", "b"), {("x", "y"): 0.5, ("x", "z"): 0.5}),
        (("a.lr", "b.lr"), {(str(i / 7), str(i / 3)): 0.5 for i in range(1, 25)}),
        (("a",), {(f"$x_{i}$ and many more words for it",): 0.01 * i for i in range(60)}),
        ((), {("only",): 0.5}),
    ],
)
@pytest.mark.filterwarnings("error")
def test_sweeps_of_odd_shapes_are_drawn_within_the_figure(
    swept: tuple[str, ...], results: dict[tuple[str, ...], float | str]
) -> None:
    for metric in ("val/accuracy", "val/loss"):
        comparison = sweep(swept, results, metric=metric)
        drawn(figure(comparison))
        drawn(curves(comparison))


def test_a_sweep_without_trials_or_epochs_is_drawn_as_a_message(tmp_path: Path) -> None:
    empty = Comparison("nothing", pd.DataFrame(), ("optimizer",), significance_level=0.05)
    assert len(write(empty, tmp_path)) == 5
    not_started = {"run_id": "", "name": "", "status": "FAILED", "reason": "never started", "optimizer": "sgd"}
    save(
        figure(Comparison("not_started", pd.DataFrame([not_started]), ("optimizer",), significance_level=0.05)),
        tmp_path / "not_started.png",
        dpi=50,
    )
    assert texts(curves(empty).axes[0]) == ["No epoch is finished yet."]


def test_numbers_are_distinguished_from_text() -> None:
    assert all_numeric(["1", "1e-3", "-0.5"])
    assert not any(map(all_numeric, (["adam"], ["1", "adam"], ["nan"], ["inf"], [""], [])))
