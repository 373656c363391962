"""Reliability bins and the reliability diagram."""

import numpy as np
import pytest
import torch
from matplotlib.container import BarContainer
from matplotlib.text import Text
from sample_evaluation import make_evaluation
from torchmetrics.functional.classification import binary_calibration_error

from cifar_pipeline.reporting.metrics import Reliability, reliability
from cifar_pipeline.reporting.plots import reliability_diagram


def binned(confidence: list[float], correct: list[int], bins: int) -> Reliability:
    return reliability(np.array(confidence, np.float32), np.array(correct, bool), bins)


@pytest.mark.parametrize("images", [40, 300, 2000])
def test_the_diagrams_error_is_that_of_metrics_json_and_of_torchmetrics(images: int) -> None:
    evaluation = make_evaluation(images)
    predictions = evaluation.predictions
    error = reliability(predictions.confidence, predictions.correct, 15).error
    assert error == pytest.approx(evaluation.metrics["test"]["calibration_error"], abs=1e-6)
    confidence, correct = torch.from_numpy(predictions.confidence), torch.from_numpy(predictions.correct)
    assert error == pytest.approx(float(binary_calibration_error(confidence, correct.long(), 15)), abs=1e-6)


def test_each_prediction_is_in_its_bin() -> None:
    bins = binned([0.5, 0.55, 0.74, 0.75, 1.0], [1, 0, 0, 1, 1], 4)
    assert bins.counts.tolist() == [0, 0, 3, 2]
    np.testing.assert_allclose(bins.accuracy[2:], [1 / 3, 1])
    np.testing.assert_allclose(bins.confidence[2:], [(0.5 + 0.55 + 0.74) / 3, 0.875], rtol=1e-6)
    assert np.isnan(bins.accuracy[:2]).all()


@pytest.mark.parametrize(("correct", "sign"), [([0, 0, 1], 1), ([1, 1, 1], -1)])
def test_an_overconfident_model_is_above_zero(correct: list[int], sign: int) -> None:
    assert np.sign(binned([0.9, 0.9, 0.9], correct, 15).overconfidence) == sign


def test_the_diagram_draws_accuracy_and_counts() -> None:
    bins = binned([0.5, 0.55, 0.74, 0.75, 1.0], [1, 0, 0, 1, 1], 4)
    accuracy_axes, count_axes = reliability_diagram(bins).axes
    for axes, values in ((accuracy_axes, [0, 0, 1 / 3, 1]), (count_axes, [0, 0, 3, 2])):
        (bars,) = [container for container in axes.containers if isinstance(container, BarContainer)]
        np.testing.assert_allclose([bar.get_height() for bar in bars], values)


def test_the_note_on_the_diagonal_does_not_cover_the_bars() -> None:
    figure = reliability_diagram(binned([0.05, 0.5, 1.0], [1, 1, 1], 4))
    figure.canvas.draw()
    axes = figure.axes[0]
    (note,) = [text for text in axes.findobj(Text) if "dashed" in text.get_text()]
    assert note.get_window_extent().y0 >= axes.get_window_extent().y1
    assert note.get_window_extent().x0 > axes._left_title.get_window_extent().x1  # type: ignore[attr-defined]
