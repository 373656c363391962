"""How far a number of test images fixes an accuracy."""

from math import sqrt
from statistics import NormalDist


def wilson(right: int, images: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of fractions for which `right` of `images` is nothing unusual, at a level of confidence.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927: unlike the usual
    `p ± z * sqrt(p (1 - p) / n)` it holds near 0 and 1 and for few images, too. (scipy has the same behind an import of
    a second.)
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    fraction, weight = right / images, z * z / images
    centre = (fraction + weight / 2) / (1 + weight)
    half = z / (1 + weight) * sqrt(fraction * (1 - fraction) / images + weight / (4 * images))
    return max(0.0, centre - half), min(1.0, centre + half)
