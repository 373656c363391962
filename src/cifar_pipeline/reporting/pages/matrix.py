"""The confusion matrix as a table that one can read, copy and hear; with too many classes, as a picture."""

from dataclasses import dataclass, field

import numpy as np

from cifar_pipeline.reporting.answers import Answers
from cifar_pipeline.reporting.confusion import confusion_matrix
from cifar_pipeline.reporting.pages.document import percent
from cifar_pipeline.reporting.pages.embedded import figure_picture_uri

MOST_CLASSES = 20
# How many of the most frequent confusions are said in words.
SAID = 5
# From this share on, white letters are easier to read on a cell than dark ones.
DEEP = 0.6


@dataclass(frozen=True)
class Cell:
    """How many hundredths of a class are taken for another one; `share` is the depth of its colour."""

    text: str
    share: float
    right: bool

    @property
    def deep(self) -> bool:
        return self.share > DEEP


@dataclass(frozen=True)
class Confusion:
    """`rows` of (class, cells) where there are few classes, else a picture; `most` says the most frequent mistakes."""

    classes: list[str]
    rows: list[tuple[str, list[Cell]]] = field(default_factory=list)
    source: str = ""
    most: list[str] = field(default_factory=list)


def confusion(answers: Answers, caption: str) -> Confusion:
    """Lay the confusion matrix out for a page."""
    counts, classes = answers.counts(), list(answers.classes)
    images = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(images, 1)
    most = _most_frequent(counts, shares, classes)
    if len(classes) > MOST_CLASSES:
        drawn = confusion_matrix(answers.labels, answers.predictions, classes, f"Confusion: {caption}")
        return Confusion(classes, source=figure_picture_uri(drawn), most=most)
    rows = [
        (name, [_cell(int(counts[k, j]), float(shares[k, j]), k == j) for j in range(len(classes))])
        for k, name in enumerate(classes)
    ]
    return Confusion(classes, rows, most=most)


def _cell(count: int, share: float, right: bool) -> Cell:
    # A few images of many are not none.
    text = "" if not count else f"{100 * share:.0f}" if share >= 0.005 else "<1"
    return Cell(text, round(share, 3), right)


def _most_frequent(counts: np.ndarray, shares: np.ndarray, classes: list[str]) -> list[str]:
    wrong = np.where(np.eye(len(classes), dtype=bool), 0, counts)
    order = np.argsort(-wrong, axis=None, kind="stable")[:SAID]
    places = [divmod(int(place), len(classes)) for place in order]
    return [
        f"{classes[k]} for {classes[j]} ({percent(shares[k, j], 0)}: {counts[k, j]:,} of {counts[k].sum():,})"
        for k, j in places
        if wrong[k, j]
    ]
