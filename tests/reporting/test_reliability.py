"""Answers in bins of their probability: the bins of the calibration error, and the diagram of them."""

import numpy as np
import pytest
from matplotlib.container import BarContainer
from sample_evaluation import evaluation

from cifar_pipeline.reporting.metrics import Predictions
from cifar_pipeline.reporting.plots import reliability, reliability_diagram


def answers(confidence: list[float], right: list[int]) -> Predictions:
    return Predictions(["a", "b"], np.zeros(len(right), int), 1 - np.array(right), np.array(confidence, np.float32))


@pytest.mark.parametrize("images", [40, 300, 2000])
def test_the_diagrams_error_is_that_of_metrics_json(images: int) -> None:
    made = evaluation(images)
    assert reliability(made.predict, 15).error == pytest.approx(made.metrics["test"]["calibration_error"], abs=1e-6)


def test_each_answer_is_in_its_bin() -> None:
    found = reliability(answers([0.5, 0.55, 0.74, 0.75, 1.0], [1, 0, 0, 1, 1]), 4)
    assert found.counts.tolist() == [0, 0, 3, 2]
    np.testing.assert_allclose(found.accuracy[2:], [1 / 3, 1])
    np.testing.assert_allclose(found.confidence[2:], [(0.5 + 0.55 + 0.74) / 3, 0.875], rtol=1e-6)
    assert np.isnan(found.accuracy[:2]).all()


@pytest.mark.parametrize(("right", "sign"), [([0, 0, 1], 1), ([1, 1, 1], -1)])
def test_too_sure_is_above_zero(right: list[int], sign: int) -> None:
    assert np.sign(reliability(answers([0.9, 0.9, 0.9], right), 15).overconfidence) == sign


def test_the_diagram_draws_accuracy_above_and_numbers_below() -> None:
    found = reliability(answers([0.5, 0.55, 0.74, 0.75, 1.0], [1, 0, 0, 1, 1]), 4)
    above, below = reliability_diagram(found).axes
    for axes, values in ((above, [0, 0, 1 / 3, 1]), (below, [0, 0, 3, 2])):
        (bars,) = [container for container in axes.containers if isinstance(container, BarContainer)]
        np.testing.assert_allclose([bar.get_height() for bar in bars], values)
