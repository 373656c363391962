"""How far a model's probabilities can be taken at their word: the reliability diagram."""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from cifar_pipeline.reporting.answers import Answers
from cifar_pipeline.reporting.style import (
    FONT,
    INK,
    QUIET,
    SMALL,
    TRAIN,
    VALIDATION,
    in_percent,
    new_figure,
    plain_axes,
)


@dataclass(frozen=True)
class Reliability:
    """Answers by their probability, in equal bins of [0, 1]; all `[bins]`, NaN where a bin holds no answer."""

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error: `sum_b n_b / N * |accuracy_b - mean confidence_b|` (Guo et al. 2017)."""
        gaps = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float((self.counts * gaps).sum() / max(1, self.counts.sum()))

    @property
    def excess(self) -> float:
        """Mean probability less accuracy over all answers: above 0 the model is too sure, below 0 too modest."""
        gaps = np.nan_to_num(self.confidence - self.accuracy)
        return float((self.counts * gaps).sum() / max(1, self.counts.sum()))


def reliability(answers: Answers, bins: int) -> Reliability:
    """Put the answers into bins by their probability, as the calibration error in metrics.json does."""
    # In the probabilities' own precision, so that one on an edge falls into the same bin as there.
    edges = np.linspace(0, 1, bins + 1, dtype=np.float32)
    places = np.clip(np.digitize(answers.confidence.astype(np.float32), edges) - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    some = np.where(counts > 0, counts, np.nan)
    confidence = np.bincount(places, weights=answers.confidence, minlength=bins) / some
    accuracy = np.bincount(places, weights=answers.right, minlength=bins) / some
    return Reliability(edges.astype(float), counts, confidence, accuracy)


def reliability_diagram(found: Reliability) -> Figure:
    """Draw accuracy against probability, a bar a bin, and the line where both are equal; below, how many answers."""
    figure = new_figure(5.0, 4.4, "")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    starts, width = found.edges[:-1], np.diff(found.edges)
    plain_axes(above, "Right answers")
    above.bar(starts, np.nan_to_num(found.accuracy), width, align="edge", color=TRAIN, alpha=0.75, linewidth=0)
    above.plot([0, 1], [0, 1], color=VALIDATION, linewidth=1.6, linestyle=(0, (4, 3)))
    above.text(0.02, 0.93, "dashed: probability and accuracy are equal", transform=above.transAxes, fontsize=SMALL,
               color=INK, family=FONT)  # fmt: skip
    above.set_xlim(0, 1)
    above.set_ylim(0, 1)
    plain_axes(below, "Answers", x="probability of the answer")
    below.bar(starts, found.counts, width, align="edge", color=QUIET, alpha=0.75, linewidth=0)
    for axis in (above.xaxis, above.yaxis):
        in_percent(axis)
    return figure
