"""Wilson's confidence interval compared with scipy's."""

import pytest
from scipy.stats import binomtest

from cifar_pipeline.reporting.metrics import wilson_interval


@pytest.mark.parametrize(("correct", "images"), [(6105, 10000), (0, 20), (20, 20), (1, 3), (356, 359), (0, 1)])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_the_interval_agrees_with_scipy(correct: int, images: int, level: float) -> None:
    expected = binomtest(correct, images).proportion_ci(level, method="wilson")
    assert wilson_interval(correct, images, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_interval_never_leaves_zero_to_one() -> None:
    assert wilson_interval(0, 5)[0] == 0 and wilson_interval(5, 5)[1] == 1
