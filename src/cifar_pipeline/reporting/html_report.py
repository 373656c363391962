"""Render reports/report.html: metrics, curves, confusion matrix, errors, attributions, filters, recipe, provenance.

The page is one file: figures and images are data URIs, each with an alternative text. Values are HTML-escaped.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cifar_pipeline.reporting.evaluation import Evaluation, Measurement, ReportOptions
from cifar_pipeline.reporting.html import _data_uri, figure_image_uri, figure_uri, percent, render
from cifar_pipeline.reporting.image_figures import AttributionMaps, attribution_overlay, filter_images, to_rgb
from cifar_pipeline.reporting.metric_names import chosen_metrics, display_name
from cifar_pipeline.reporting.metrics import ConfusedPair, Predictions, Reliability, reliability, wilson_interval
from cifar_pipeline.reporting.plots import (
    learning_curve,
    panels,
    reliability_diagram,
)
from cifar_pipeline.reporting.summary import format_device, format_skipped
from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.console import format_duration
from cifar_pipeline.utils.text import flatten_dict


def write_report(path: Path, evaluation: Evaluation) -> Path:
    """Write the report page. The same evaluation gives the same bytes."""
    with atomic_write(path) as tmp:
        tmp.write_text(render_report(evaluation), encoding="utf-8", newline="\n")
    return path


def render_report(evaluation: Evaluation) -> str:
    """Render the report page as HTML."""
    predictions, options = evaluation.predictions, evaluation.options
    images, correct = len(predictions.labels), int(predictions.correct.sum())
    return render(
        "report.html",
        title=evaluation.title,
        fallback=evaluation.dataset["fallback"],
        dataset=evaluation.dataset["title"],
        test=evaluation.metrics["test"],
        other_metrics=chosen_metrics(evaluation.metrics["test"]),
        weighted=bool(evaluation.metadata.get("recipe", {}).get("loss", {}).get("class_weights")),
        images=images,
        num_classes=len(predictions.classes),
        interval=wilson_interval(correct, images),
        parameters=evaluation.metadata["parameters"],
        recipe=recipe_rows(evaluation.metadata),
        provenance=provenance_rows(evaluation),
        curves=_curves(evaluation),
        confusion=confusion_table(evaluation),
        per_class=class_tables(evaluation.per_class, options),
        calibration=calibration_section(
            reliability(predictions.confidence, predictions.correct, options.calibration_bins)
        ),
        errors=error_cards(predictions, evaluation.images, options.num_error_images),
        num_errors=images - correct,
        attributions=attribution_cards(predictions, evaluation.images, evaluation.attributions),
        attributions_unavailable=evaluation.attributions.unavailable_reason,
        filters=filter_gallery(evaluation.filters),
    )


# Larger images are reduced to this width or height; the page shows all images in one size.
MAX_PIXELS = 160
# Larger images are stored as JPEG: dozens of photos as PNG would be megabytes.
MAX_PNG_PIXELS = 96


def image_uri(pixels: np.ndarray) -> str:
    """Encode an image `[H, W]` or `[H, W, 1 or 3] uint8` as a data URI; large ones are reduced to `MAX_PIXELS`."""
    image, content = Image.fromarray(to_rgb(pixels[None])[0]), io.BytesIO()
    if max(image.size) <= MAX_PNG_PIXELS:
        image.save(content, "PNG", optimize=True)
        return _data_uri("image/png", content.getvalue())
    image.thumbnail((MAX_PIXELS, MAX_PIXELS))
    image.save(content, "JPEG", quality=88)
    return _data_uri("image/jpeg", content.getvalue())


MAX_CLASSES = 20  # with more, the confusion matrix is an image
MAX_LISTED = 5  # most frequent confusions listed as text
DARK_SHARE = 0.6  # cells above this share have white text


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix: its percentage as text, and the share of the class that sets its color."""

    text: str
    share: float
    correct: bool

    @property
    def is_dark(self) -> bool:
        return self.share > DARK_SHARE


@dataclass(frozen=True)
class ConfusionTable:
    """Confusion matrix of the page.

    Attributes:
        classes: class names, in order.
        rows: (actual class, cells); empty with more than `MAX_CLASSES` classes.
        source: data URI of the matrix as an image, with more than `MAX_CLASSES` classes.
        num_shown: classes of the image.
        top_errors: the most frequent confusions as text.
        pairs: (actual class, predicted class, share, images) of the most frequent confusions, with many classes.
    """

    classes: list[str]
    rows: list[tuple[str, list[Cell]]] = field(default_factory=list)
    source: str = ""
    num_shown: int = 0
    top_errors: list[str] = field(default_factory=list)
    pairs: list[tuple[str, str, str, str]] = field(default_factory=list)


def confusion_table(measurement: Measurement) -> ConfusionTable:
    """Lay out the confusion matrix as a table, or as an image; with many classes, that of the most confused ones."""
    predictions, classes = measurement.predictions, list(measurement.predictions.classes)
    top_errors = [
        f"{classes[pair.actual]} as {classes[pair.predicted]} ({_describe_pair(pair)})"
        for pair in predictions.confused_pairs(MAX_LISTED)
    ]
    if measurement.has_many_classes:
        pairs = [
            (
                classes[pair.actual],
                classes[pair.predicted],
                percent(pair.share, 0),
                f"{pair.count:,} of {pair.images:,}",
            )
            for pair in predictions.confused_pairs(measurement.options.num_confused_pairs)
        ]
        source = figure_image_uri(measurement.confusion_figure()) if pairs else ""
        num_shown = len(measurement.most_confused().classes) - 1
        return ConfusionTable(classes, source=source, num_shown=num_shown, top_errors=top_errors, pairs=pairs)
    if len(classes) > MAX_CLASSES:
        return ConfusionTable(classes, source=figure_image_uri(measurement.confusion_figure()), top_errors=top_errors)
    counts = predictions.confusion_matrix()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows = [
        (name, [_cell(int(counts[k, j]), float(shares[k, j]), k == j) for j in range(len(classes))])
        for k, name in enumerate(classes)
    ]
    return ConfusionTable(classes, rows, top_errors=top_errors)


def _cell(count: int, share: float, correct: bool) -> Cell:
    # A few images must not look like none.
    text = "" if not count else f"{100 * share:.0f}" if share >= 0.005 else "<1"
    return Cell(text, round(share, 3), correct)


def _describe_pair(pair: ConfusedPair) -> str:
    return f"{percent(pair.share, 0)}: {pair.count:,} of {pair.images:,}"


ClassMetrics = Mapping[str, Mapping[str, float]]


def class_tables(per_class: ClassMetrics, options: ReportOptions) -> dict[str, ClassMetrics]:
    """Return the metrics of the classes under a heading; with many classes, those with the lowest and highest F1."""
    if not options.is_many(list(per_class)):
        return {"": per_class}
    ordered, count = sorted(per_class, key=lambda name: per_class[name]["f1"]), options.num_listed_classes
    lowest, highest = ordered[:count], ordered[count:][-count:][::-1]
    tables = {"Lowest F1": lowest, "Highest F1": highest}
    return {heading: {name: per_class[name] for name in names} for heading, names in tables.items() if names}


Rows = list[tuple[str, str]]


def provenance_rows(evaluation: Evaluation) -> Rows:
    """List (name, value) of the data, the weights, the hardware, the code and the run behind the result."""
    run, metadata, dataset = evaluation.run, evaluation.metadata, evaluation.dataset
    timing = metadata.get("timing", {})
    sizes = ", ".join(f"{split} {size:,}" for split, size in dataset["sizes"].items())
    rows = [
        ("data set", f"{dataset['title']}{' (fallback)' if dataset['fallback'] else ''}"),
        ("source", str(dataset["source"])),
        ("images", f"{sizes}{format_skipped(dataset)}; only this evaluation uses the test split"),
        ("data hash", str(dataset["hash"])[:16]),
        ("weights", _describe_weights(evaluation.checkpoint, metadata)),
        *([("trained from", _describe_pretrained(metadata["weights"]))] if "weights" in metadata else []),
        ("parameters", f"{metadata['parameters']:,}"),
        ("training", f"{format_duration(timing['seconds'])} on {format_device(timing)}" if timing else ""),
        ("stopped early", str(metadata.get("stopped", ""))),
        ("code", f"commit {metadata['commit'][:12]}" if metadata.get("commit") else "not under git"),
        ("fingerprint", str(metadata.get("fingerprint", ""))),
        ("MLflow run", f"{run['name']} ({run['id']})"),
    ]
    return [(name, value) for name, value in rows if value]


def recipe_rows(metadata: Mapping[str, Any]) -> Rows:
    """List (group, option and its values) of the training's configuration."""
    options, values = metadata.get("choices", {}), metadata.get("recipe", {})
    rows = [("experiment", str(options["experiment"]))] if options.get("experiment") else []
    for group, value in values.items():
        if not isinstance(value, Mapping):
            rows.append((group, str(value)))
            continue
        option = options.get(group) or str(value.get("_target_", "")).rpartition(".")[2]
        settings = ", ".join(f"{key} {_plain(setting)}" for key, setting in _settings(value))
        rows.append((group, ": ".join(filter(None, (option, settings))) or "none"))
    return rows


def _describe_pretrained(weights: Mapping[str, Any]) -> str:
    """Name the pretrained weights that a training started from, with the beginning of their hash."""
    return f"{weights['title']} (SHA-256 {str(weights['sha256'])[:16]})"


def _describe_weights(checkpoint: str, metadata: Mapping[str, Any]) -> str:
    epochs = metadata.get("epochs")
    if checkpoint == "best":
        monitor = display_name(metadata.get("recipe", {}).get("monitor", ""))
        return f"best {monitor} (epoch {metadata.get('best_epoch')} of {epochs})"
    return f"last (epoch {epochs})"


def _settings(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the values that are set, without Hydra's keys such as `_target_`."""
    for key, value in flatten_dict(values).items():
        if value is not None and not key.rpartition(".")[2].startswith("_"):
            yield key, value


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


MAX_FILTERS = 64


@dataclass(frozen=True)
class ImageCard:
    """A test image with alternative text and caption, and optionally its attribution map."""

    source: str
    alt: str
    caption: str
    overlay: str = ""
    overlay_alt: str = ""


@dataclass(frozen=True)
class FilterGallery:
    """Data URIs of the first layer's filters, their legend, and the number of filters not shown."""

    images: list[str]
    legend: str
    more: int


def error_cards(predictions: Predictions, images: np.ndarray, count: int) -> list[ImageCard]:
    """Make cards of the most confident errors."""
    return [
        ImageCard(image_uri(images[index]), _image_alt(predictions, index), _caption(predictions, index))
        for index in predictions.most_confident_errors(count)
    ]


def attribution_cards(
    predictions: Predictions, images: np.ndarray, maps: AttributionMaps
) -> dict[str, list[ImageCard]]:
    """Make cards of the images with attribution maps, under `correct` and `incorrect`."""
    cards: dict[str, list[ImageCard]] = {"correct": [], "incorrect": []}
    if maps.values is None:
        return cards
    explained = np.asarray(images[maps.indices])
    overlays = attribution_overlay(explained, maps.values)
    for index, image, overlay in zip(maps.indices, explained, overlays, strict=True):
        caption = _caption(predictions, index)
        card = ImageCard(
            image_uri(image), _image_alt(predictions, index), caption, image_uri(overlay), f"Attribution map: {caption}"
        )
        cards["correct" if predictions.correct[index] else "incorrect"].append(card)
    return cards


def filter_gallery(weights: np.ndarray | None) -> FilterGallery | None:
    """Encode the filters one by one; None if the first layer is not a convolution."""
    if weights is None or weights.size == 0:
        return None
    filters = filter_images(weights)
    shown = filters.images[:MAX_FILTERS]
    return FilterGallery([image_uri(image) for image in shown], filters.legend, len(filters.images) - len(shown))


def _image_alt(predictions: Predictions, index: int) -> str:
    return f"Image of class {predictions.classes[predictions.labels[index]]}"


def _caption(predictions: Predictions, index: int) -> str:
    label, predicted = (
        predictions.classes[int(class_indices[index])]
        for class_indices in (predictions.labels, predictions.predictions)
    )
    confidence = f"({percent(predictions.confidence[index], 0)})"
    return f"{label} {confidence}" if predictions.correct[index] else f"{label}, predicted as {predicted} {confidence}"


def confidence_bias(overconfidence: float) -> str:
    """Return `overconfident` or `underconfident`; empty below 0.05 percentage points."""
    if round(100 * abs(overconfidence), 1) == 0:
        return ""
    return "overconfident" if overconfidence > 0 else "underconfident"


def _curves(evaluation: Evaluation) -> list[dict[str, str]]:
    monitor, mode = evaluation.monitor
    return [
        {
            "source": figure_uri(learning_curve(evaluation.history, panel, monitor, mode)),
            "alt": f"{panel.title} by epoch",
        }
        for panel in panels(evaluation.history, monitor)
    ]


def calibration_section(bins: Reliability) -> dict[str, Any]:
    """Return the reliability diagram, and by how much the confidence differs from the accuracy on average."""
    return {
        "source": figure_uri(reliability_diagram(bins)),
        "alt": "Reliability diagram: accuracy by confidence",
        "bins": len(bins.counts),
        "bias": confidence_bias(bins.overconfidence),
        "points": f"{100 * abs(bins.overconfidence):.1f}",
    }
