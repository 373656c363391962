"""reports/report.html: one evaluation, told to a person, from its accuracy to the pixels that decided.

A page from its template: HTML in which what comes from outside is text and can be nothing else.

Figures and images inside a page, as data URIs; figures are light or dark as their reader wants pages to be.

The confusion matrix as a table that one can read, copy and hear; with too many classes, as an image.

Where an evaluation's numbers come from: the data, the training, its recipe.

How a result stands beside the one that this repository publishes.

Images of the test part on the page: the surest mistakes, what the network looked at, what its first layer sees.

What figures say, in words: for whoever can't see them, and where images are off.
"""

import io
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from cifar_pipeline.reporting.image_figures import AttributionMaps, attribution_overlay, filter_images, to_rgb
from cifar_pipeline.reporting.metrics import SPLIT_NAMES, Predictions, wilson_interval
from cifar_pipeline.reporting.plots import (
    Reliability,
    best_epoch,
    confusion_figure,
    learning_curve,
    reliability,
    reliability_diagram,
)
from cifar_pipeline.reporting.style import BACKGROUND, COLORS, GRID, MUTED, OTHER_COLOR, TEXT_COLOR
from cifar_pipeline.reporting.summary import format_device, format_skipped
from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.console import format_duration
from cifar_pipeline.utils.text import escape_control, flatten_dict

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """Fill a template of this folder in. A value that the template names must be there."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_as_text,
    )  # fmt: skip
    environment.filters |= {"percent": percent, "number": number}
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(style=style, **values) + "\n"


def _as_text(value: Any) -> Any:
    """Escape what would change how a page is read, bidirectional overrides for one; Markup is ours."""
    return escape_control(value, keep="\n\t") if isinstance(value, str) and not isinstance(value, Markup) else value


def percent(fraction: float, digits: int = 2) -> str:
    """A fraction in per cent, with a space that no line breaks at."""
    return f"{100 * fraction:.{digits}f}\N{NO-BREAK SPACE}%"


def number(value: float) -> str:
    """A count with its thousands apart."""
    return f"{value:,}"


# A figure's colours, and what they are on a dark page.
DARK_COLORS = {
    TEXT_COLOR: "#E6E6E6",
    MUTED: "#A7ACB1",
    GRID: "#3A4046",
    BACKGROUND: "#16191C",
    OTHER_COLOR: "#565C63",
    **dict(
        zip(
            COLORS,
            ("#4FA9E3", "#FF8A4C", "#2FC79A", "#E3A1C6", "#F0B429", "#7CC7F2", "#E6E6E6", "#BC9A76"),
            strict=True,
        )
    ),
}
# Images of more pixels a side are brought down to so many, which a page shows as large as the others.
MAX_PIXELS = 160


def figure_uri(figure: Figure) -> str:
    """The figure as an SVG without a background. The same figure gives the same text."""
    content = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "cifar-pipeline", "svg.fonttype": "path"}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _uri("image/svg+xml", _add_dark_mode(content.getvalue()).encode())


def figure_image_uri(figure: Figure, dpi: int = 100) -> str:
    """The figure as a PNG on white: for one that is made of thousands of parts."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return _uri("image/png", content.getvalue())


def image_uri(picture: np.ndarray) -> str:
    """An image `[H, W]` or `[H, W, 1 or 3] uint8`: a small one as it is, a large one in the size that is shown."""
    image, content = Image.fromarray(to_rgb(picture[None])[0]), io.BytesIO()
    if max(image.size) <= MAX_PIXELS:
        image.save(content, "PNG", optimize=True)
        return _uri("image/png", content.getvalue())
    image.thumbnail((MAX_PIXELS, MAX_PIXELS))
    image.save(content, "JPEG", quality=88)
    return _uri("image/jpeg", content.getvalue())


def _add_dark_mode(svg: str) -> str:
    """Let each colour be a variable, which has another value where the reader wants dark pages."""
    names = {colour.lower(): f"--c{place}" for place, colour in enumerate(dict.fromkeys(DARK_COLORS))}
    light = ";".join(f"{name}:{colour}" for colour, name in names.items())
    dark = ";".join(f"{names[colour.lower()]}:{value}" for colour, value in DARK_COLORS.items())
    style = f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    svg = re.sub("|".join(names), lambda found: f"var({names[found[0]]})", svg)
    opened, tag, rest = svg.partition("<defs>")
    return opened + style + tag + rest


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode()}"


MAX_CLASSES = 20
# How many of the most frequent confusions are said in words.
MAX_LISTED = 5
# From this share on, white letters are easier to read on a cell than dark ones.
DARK_SHARE = 0.6


@dataclass(frozen=True)
class Cell:
    """How many hundredths of a class are taken for another one; `share` is the depth of its colour."""

    text: str
    share: float
    right: bool

    @property
    def deep(self) -> bool:
        return self.share > DARK_SHARE


@dataclass(frozen=True)
class ConfusionTable:
    """`rows` of (class, cells) where there are few classes, else an image; `most` says the most frequent mistakes."""

    classes: list[str]
    rows: list[tuple[str, list[Cell]]] = field(default_factory=list)
    source: str = ""
    most: list[str] = field(default_factory=list)


def confusion_table(answers: Predictions, caption: str) -> ConfusionTable:
    """Lay the confusion matrix out for a page."""
    counts, classes = answers.confusion_matrix(), list(answers.classes)
    images = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(images, 1)
    most = _most_frequent(counts, shares, classes)
    if len(classes) > MAX_CLASSES:
        drawn = confusion_figure(answers.labels, answers.predictions, classes, f"Confusion: {caption}")
        return ConfusionTable(classes, source=figure_image_uri(drawn), most=most)
    rows = [
        (name, [_cell(int(counts[k, j]), float(shares[k, j]), k == j) for j in range(len(classes))])
        for k, name in enumerate(classes)
    ]
    return ConfusionTable(classes, rows, most=most)


def _cell(count: int, share: float, right: bool) -> Cell:
    # A few images of many are not none.
    text = "" if not count else f"{100 * share:.0f}" if share >= 0.005 else "<1"
    return Cell(text, round(share, 3), right)


def _most_frequent(counts: np.ndarray, shares: np.ndarray, classes: list[str]) -> list[str]:
    wrong = np.where(np.eye(len(classes), dtype=bool), 0, counts)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_LISTED]
    places = [divmod(int(place), len(classes)) for place in order]
    return [
        f"{classes[k]} for {classes[j]} ({percent(shares[k, j], 0)}: {counts[k, j]:,} of {counts[k].sum():,})"
        for k, j in places
        if wrong[k, j]
    ]


Rows = list[tuple[str, str]]


def provenance(run: Mapping[str, str], facts: Mapping[str, Any], metrics: Mapping[str, Any]) -> Rows:
    """Which data, which weights, which code, on which machine."""
    dataset, timing = metrics["dataset"], facts.get("timing", {})
    sizes = ", ".join(f"{part} {size:,}" for part, size in dataset["sizes"].items())
    rows = [
        ("data set", f"{dataset['title']}{', the fallback' if dataset['fallback'] else ''}"),
        ("source", str(dataset["source"])),
        ("images", f"{sizes}{format_skipped(dataset)}; the test part is looked at by this evaluation alone"),
        ("data's hash", str(dataset["hash"])[:16]),
        ("weights", _weights(metrics["checkpoint"], facts)),
        ("parameters", f"{metrics['parameters']:,}"),
        ("trained", f"in {format_duration(timing['seconds'])} on {format_device(timing)}" if timing else ""),
        ("code", f"commit {facts['commit'][:12]}" if facts.get("commit") else "not under git"),
        ("training's fingerprint", str(facts.get("fingerprint", ""))),
        ("MLflow run", f"{run['name']} ({run['id']})"),
    ]
    return [(name, value) for name, value in rows if value]


def recipe(facts: Mapping[str, Any]) -> Rows:
    """What the training was told to do: the option that was chosen in each group, with its values."""
    chosen, values = facts.get("choices", {}), facts.get("recipe", {})
    rows = [("experiment", str(chosen["experiment"]))] if chosen.get("experiment") else []
    for group, value in values.items():
        if not isinstance(value, Mapping):
            rows.append((group, str(value)))
            continue
        option = chosen.get(group) or str(value.get("_target_", "")).rpartition(".")[2]
        settings = ", ".join(f"{key} {_plain(number)}" for key, number in _settings(value))
        rows.append((group, ": ".join(filter(None, (option, settings)))))
    return rows


def _weights(checkpoint: str, facts: Mapping[str, Any]) -> str:
    epochs = facts.get("epochs")
    if checkpoint == "best":
        return f"those of epoch {facts.get('best_epoch')} of {epochs}, the best on the validation part"
    return f"the last, of epoch {epochs}"


def _settings(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What is set, without Hydra's own words such as `_target_`."""
    for key, value in flatten_dict(values).items():
        if value is not None and not key.rpartition(".")[2].startswith("_"):
            yield key, value


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


@dataclass(frozen=True)
class PublishedComparison:
    """The verdict in words and, where both can be compared, rows of (what, ours, published) and the latter's origin."""

    words: str
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    origin: str = ""


@dataclass(frozen=True)
class Result:
    """A result's accuracy with its interval, and the numbers beside it."""

    accuracy: float
    interval: tuple[float, float]
    others: Mapping[str, float]

    @staticmethod
    def of(metrics: Mapping[str, Any]) -> "Result":
        """From the values of metrics.json."""
        test, images = metrics["test"], int(metrics["dataset"]["sizes"]["test"])
        return Result(float(test["accuracy"]), wilson_interval(round(test["accuracy"] * images), images), test)

    def cells(self) -> list[tuple[str, str]]:
        """What a table says of it."""
        return [
            ("accuracy", percent(self.accuracy)),
            ("95 % interval", f"{100 * self.interval[0]:.2f} to {percent(self.interval[1])}"),
            ("right among the first three", percent(self.others["top3_accuracy"])),
            ("loss", f"{self.others['loss']:.4f}"),
            ("calibration error", percent(self.others["calibration_error"])),
        ]


def compare_with_published(metrics: Mapping[str, Any], published: Mapping[str, Any]) -> PublishedComparison:
    """Compare metrics.json's values with those that are committed; say why, where there is nothing to compare."""
    if not published:
        return PublishedComparison(
            "There is no published result to compare with: no commit here holds reports/metrics.json."
        )
    if "error" in published:
        return PublishedComparison(
            f"Whether there is a published result to compare with is not known: {published['error']}."
        )
    theirs, origin = published["metrics"], _origin(published)
    try:
        if metrics["dataset"]["name"] != theirs["dataset"]["name"]:
            accuracy, data = percent(theirs["test"]["accuracy"]), theirs["dataset"]["title"]
            return PublishedComparison(
                f"There is nothing to compare: the published result ({origin}) is {accuracy} on {data}, this one is on "
                f"{metrics['dataset']['title']}."
            )
        ours, other = Result.of(metrics), Result.of(theirs)
        same_data = metrics["dataset"]["hash"] == theirs["dataset"]["hash"]
        rows = [(what, mine, his) for (what, mine), (_, his) in zip(ours.cells(), other.cells(), strict=True)]
    except (KeyError, TypeError, ValueError):
        return PublishedComparison(f"The published result ({origin}) is written in another way than this one.")
    return PublishedComparison(_summary_text(ours, other, same_data), rows, origin)


def _origin(published: Mapping[str, Any]) -> str:
    experiment = f"experiment {published['experiment']}, " if published.get("experiment") else ""
    return f"{experiment}commit {published['commit']} of {published['date']}"


def _summary_text(ours: Result, theirs: Result, same_data: bool) -> str:
    points = 100 * (ours.accuracy - theirs.accuracy)
    apart = ours.interval[0] > theirs.interval[1] or theirs.interval[0] > ours.interval[1]
    data = "" if same_data else " The two were trained on different parts of the data set."
    if points == 0:
        return f"As published: both are right in {percent(ours.accuracy)} of the test images.{data}"
    direction = "above" if points > 0 else "below"
    chance = (
        "lie apart: the choice of test images does not explain the difference"
        if apart
        else "overlap: the choice of test images alone might make such a difference"
    )
    return (
        f"This run's {percent(ours.accuracy)} is {abs(points):.2f} points {direction} the published "
        f"{percent(theirs.accuracy)}. The intervals {chance}.{data}"
    )


MAX_FILTERS = 64


@dataclass(frozen=True)
class ImageCard:
    """An image with its caption, and in words; where it was looked into, with a second one beside it."""

    source: str
    words: str
    caption: str
    evidence: str = ""
    evidence_words: str = ""


@dataclass(frozen=True)
class Filters:
    """The first layer's filters as images, and how to read them."""

    pictures: list[str]
    legend: str
    more: int


def error_cards(answers: Predictions, images: np.ndarray, count: int) -> list[ImageCard]:
    """The wrong answers that the model was surest of."""
    return [
        ImageCard(image_uri(images[place]), f"An image of: {answers.classes[answers.labels[place]]}",
              _caption(answers, place))
        for place in answers.most_confident_errors(count)
    ]  # fmt: skip


def attribution_cards(answers: Predictions, images: np.ndarray, found: AttributionMaps) -> dict[str, list[ImageCard]]:
    """The images that were looked into, each beside its evidence: those of right answers and those of wrong ones."""
    pairs: dict[str, list[ImageCard]] = {"right": [], "wrong": []}
    if found.values is None:
        return pairs
    chosen = np.asarray(images[found.places])
    for place, picture, drawn, values in zip(
        found.places, chosen, attribution_overlay(chosen, found.values), found.values, strict=True
    ):
        shown = ImageCard(
            image_uri(picture), f"An image of: {answers.classes[answers.labels[place]]}",
            _caption(answers, place), image_uri(drawn), _describe_location(values),
        )  # fmt: skip
        pairs["right" if answers.correct[place] else "wrong"].append(shown)
    return pairs


def filters(weights: np.ndarray | None) -> Filters | None:
    """The filters one by one; None where the network begins with no convolution."""
    if weights is None or weights.size == 0:
        return None
    drawn = filter_images(weights)
    shown = drawn.pictures[:MAX_FILTERS]
    return Filters([image_uri(picture) for picture in shown], drawn.legend, len(drawn.pictures) - len(shown))


def _caption(answers: Predictions, place: int) -> str:
    label, answer = (answers.classes[int(numbers[place])] for numbers in (answers.labels, answers.predictions))
    sure = f"({percent(answers.confidence[place], 0)})"
    return f"{label} {sure}" if answers.correct[place] else f"{label}, taken for {answer} {sure}"


def _describe_location(values: np.ndarray) -> str:
    """Which ninth of the image speaks most for the answer, and how the evidence is parted."""
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


def describe_curve(history: pd.DataFrame, name: str) -> str:
    """Where the curves of `loss` or `accuracy` begin, where they end, and which epoch was best."""
    first, last = int(history["epoch"].iloc[0]), int(history["epoch"].iloc[-1])
    said = [
        f"{words} from {format_metric(name, known.iloc[0])} to {format_metric(name, known.iloc[-1])}"
        for part, words in SPLIT_NAMES.items()
        if len(known := _known(history, f"{part}/{name}"))
    ]
    best = best_epoch(history)
    if best is not None and name == "accuracy":
        top = format_metric(name, history["val/accuracy"].iloc[best])
        said.append(f"the best validation accuracy is {top}, in epoch {history['epoch'].iloc[best]:.0f}")
    epochs = f"over epochs {first} to {last}" if last > first else f"in epoch {first}"
    return f"{name.capitalize()} {epochs}: {'; '.join(said)}."


def describe_calibration(found: Reliability) -> str:
    """How often answers are right that are given with much probability, with middling and with little."""
    filled = np.flatnonzero(found.counts)
    chosen = dict.fromkeys(int(filled[place]) for place in (0, len(filled) // 2, -1))
    said = [
        f"of {found.counts[b]:,} answers given with {100 * found.edges[b]:.0f} to {100 * found.edges[b + 1]:.0f} %, "
        f"{100 * found.accuracy[b]:.0f} % are right"
        for b in chosen
    ]
    return f"Reliability diagram in {len(found.counts)} bins: {'; '.join(said)}."


def confidence_bias(excess: float) -> str:
    """What a model is whose answers have `excess` more probability than they are right; empty where there is none."""
    if round(100 * abs(excess), 1) == 0:
        return ""
    return "too sure" if excess > 0 else "too modest"


def format_metric(name: str, value: float) -> str:
    """A metric's value as a person would write it."""
    return f"{100 * value:.1f} %" if name == "accuracy" else f"{value:.3f}"


def _known(history: pd.DataFrame, key: str) -> pd.Series:
    return pd.to_numeric(history[key], errors="coerce").dropna() if key in history else pd.Series(dtype=float)


@dataclass(frozen=True)
class Evaluation:
    """All that the page tells of.

    Attributes:
        run: id and name of the MLflow run.
        facts: what the training left about itself (models/metadata.json).
        metrics: what stands in metrics.json.
        caption: what the data set is called.
        answers, images: the test part's, `[N]` and `[N, H, W, C] uint8`.
        history: a row per epoch.
        filters: the first convolution's, `[O, C, h, w]`, where there is one.
        attributions: of some of the images.
        published: `commit`, `date`, `experiment` and `metrics` of the committed results; empty where there are none.
    """

    run: Mapping[str, str]
    facts: Mapping[str, Any]
    metrics: Mapping[str, Any]
    caption: str
    predictions: Predictions
    images: np.ndarray
    history: pd.DataFrame
    filters: np.ndarray | None
    attributions: AttributionMaps
    published: Mapping[str, Any]

    @property
    def title(self) -> str:
        """What is named over figures and pages."""
        return f"{self.run['name']} on {self.caption}"


def write_report(path: Path, evaluation: Evaluation, bins: int, shown_mistakes: int) -> Path:
    """Write the page; `bins` are those of the calibration error. The same evaluation gives the same bytes."""
    with atomic_write(path) as part:
        part.write_text(report(evaluation, bins, shown_mistakes), encoding="utf-8", newline="\n")
    return path


def report(evaluation: Evaluation, bins: int, shown_mistakes: int) -> str:
    """The page as text."""
    metrics, answers = evaluation.metrics, evaluation.predictions
    images = len(answers.labels)
    return render(
        "report.html",
        title=evaluation.title,
        fallback=metrics["dataset"]["fallback"],
        dataset=metrics["dataset"]["title"],
        test=metrics["test"],
        weighted=bool(evaluation.facts.get("recipe", {}).get("loss", {}).get("class_weights")),
        images=images,
        interval=wilson_interval(int(answers.correct.sum()), images),
        parameters=metrics["parameters"],
        compared=compare_with_published(metrics, evaluation.published),
        recipe=recipe(evaluation.facts),
        provenance=provenance(evaluation.run, evaluation.facts, metrics),
        curves=[_curve(evaluation.history, name) for name in ("loss", "accuracy")],
        confusion=confusion_table(answers, evaluation.caption),
        per_class=metrics["per_class"],
        calibration=_calibration(reliability(answers, bins)),
        mistakes=error_cards(answers, evaluation.images, shown_mistakes),
        wrong=int(images - answers.correct.sum()),
        looked_at=attribution_cards(answers, evaluation.images, evaluation.attributions),
        why_none=evaluation.attributions.why_none,
        filters=filters(evaluation.filters),
    )


def _curve(history: pd.DataFrame, name: str) -> dict[str, str]:
    return {"source": figure_uri(learning_curve(history, name)), "words": describe_curve(history, name)}


def _calibration(found: Reliability) -> dict[str, Any]:
    return {
        "source": figure_uri(reliability_diagram(found)),
        "words": describe_calibration(found),
        "bins": len(found.counts),
        "direction": confidence_bias(found.overconfidence),
        "points": f"{100 * abs(found.overconfidence):.1f}",
    }
