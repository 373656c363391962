"""Pictures of the test part on the page: the surest mistakes, what the network looked at, what its first layer sees."""

from dataclasses import dataclass

import numpy as np

from cifar_pipeline.reporting.answers import Answers
from cifar_pipeline.reporting.evidence import Attributions, evidence
from cifar_pipeline.reporting.filters import filter_pictures
from cifar_pipeline.reporting.pages.document import percent
from cifar_pipeline.reporting.pages.embedded import picture_uri

MOST_FILTERS = 64


@dataclass(frozen=True)
class Shown:
    """A picture with its caption, and in words; where it was looked into, with a second one beside it."""

    source: str
    words: str
    caption: str
    evidence: str = ""
    evidence_words: str = ""


@dataclass(frozen=True)
class Filters:
    """The first layer's filters as pictures, and how to read them."""

    pictures: list[str]
    legend: str
    more: int


def mistakes(answers: Answers, images: np.ndarray, count: int) -> list[Shown]:
    """The wrong answers that the model was surest of."""
    return [
        Shown(picture_uri(images[place]), f"A picture of: {answers.classes[answers.labels[place]]}",
              _caption(answers, place))
        for place in answers.surest_mistakes(count)
    ]  # fmt: skip


def looked_at(answers: Answers, images: np.ndarray, found: Attributions) -> dict[str, list[Shown]]:
    """The images that were looked into, each beside its evidence: those of right answers and those of wrong ones."""
    pairs: dict[str, list[Shown]] = {"right": [], "wrong": []}
    if found.values is None:
        return pairs
    chosen = np.asarray(images[found.places])
    for place, picture, drawn, values in zip(
        found.places, chosen, evidence(chosen, found.values), found.values, strict=True
    ):
        shown = Shown(
            picture_uri(picture), f"A picture of: {answers.classes[answers.labels[place]]}",
            _caption(answers, place), picture_uri(drawn), _where(values),
        )  # fmt: skip
        pairs["right" if answers.right[place] else "wrong"].append(shown)
    return pairs


def filters(weights: np.ndarray | None) -> Filters | None:
    """The filters one by one; None where the network begins with no convolution."""
    if weights is None or weights.size == 0:
        return None
    drawn = filter_pictures(weights)
    shown = drawn.pictures[:MOST_FILTERS]
    return Filters([picture_uri(picture) for picture in shown], drawn.legend, len(drawn.pictures) - len(shown))


def _caption(answers: Answers, place: int) -> str:
    label, answer = (answers.classes[int(numbers[place])] for numbers in (answers.labels, answers.predictions))
    sure = f"({percent(answers.confidence[place], 0)})"
    return f"{label} {sure}" if answers.right[place] else f"{label}, taken for {answer} {sure}"


def _where(values: np.ndarray) -> str:
    """Which ninth of the picture speaks most for the answer, and how the evidence is parted."""
    positive = np.clip(values, 0, None)
    total = np.abs(values).sum()
    if total == 0:
        return "No pixel speaks for the answer or against it."
    height, width = values.shape
    ninths = {
        f"{row} {column}".replace("middle middle", "middle"): positive[top:bottom, left:right].sum()
        for row, top, bottom in _thirds(("top", "middle", "bottom"), height)
        for column, left, right in _thirds(("left", "middle", "right"), width)
    }
    most = max(ninths, key=lambda name: float(ninths[name]))
    return f"What speaks for the answer is {100 * positive.sum() / total:.0f} % of the evidence, most of it {most}."


def _thirds(names: tuple[str, str, str], length: int) -> list[tuple[str, int, int]]:
    edges = [round(length * part / 3) for part in range(4)]
    return list(zip(names, edges[:-1], edges[1:], strict=True))
