"""What a model said about one part of the data, beside what is true."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Answers:
    """`labels` and `predictions` are `[N] int64`, `confidence` is the probability of each prediction, `[N] float`."""

    classes: Sequence[str]
    labels: np.ndarray
    predictions: np.ndarray
    confidence: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Which answers are right, `[N] bool`."""
        return np.asarray(self.labels == self.predictions)

    def counts(self) -> np.ndarray:
        """How many images of each class (row) are taken for each class (column): `[K, K] int64`."""
        return counted(self.labels, self.predictions, len(self.classes))

    def surest_mistakes(self, count: int) -> np.ndarray:
        """The places of the wrong answers that the model was surest of, surest first, `count` at most."""
        return surest(~self.right, self.confidence)[:count]

    def surest_right(self, count: int) -> np.ndarray:
        """The places of the right answers that the model was surest of, one of each class, `count` at most."""
        places = surest(self.right, self.confidence)
        _, first = np.unique(self.labels[places], return_index=True)
        return places[np.sort(first)][:count]

    def telling(self, count: int) -> np.ndarray:
        """The places of so many of the surest right answers and, after them, of the surest mistakes."""
        return np.concatenate([self.surest_right(count), self.surest_mistakes(count)])


def counted(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """How many images of each class (row) are taken for each class (column): `[K, K] int64`."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, predictions), 1)
    return counts


def surest(chosen: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """The places that are chosen (`[N] bool`), surest first; of equally sure ones the earlier comes first."""
    places = np.flatnonzero(chosen)
    return np.asarray(places[np.argsort(-confidence[places], kind="stable")])
