"""Compare models on the same labeled images: metrics side by side, McNemar's test, and images on which they differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np

from cifar_pipeline.reporting.evaluation import write_each
from cifar_pipeline.reporting.html import percent, render
from cifar_pipeline.reporting.html_report import ImageCard, Rows, image_uri
from cifar_pipeline.reporting.metric_names import format_metric, heading_name, unit
from cifar_pipeline.reporting.metrics import sort_by_confidence, wilson_interval
from cifar_pipeline.reporting.model_evaluation import (
    METRICS_FILE,
    PREDICTIONS_FILE,
    REPORT_FILE,
    ChosenMetrics,
    ModelEvaluation,
    ModelOutputs,
    normalized_name,
    prediction_rows,
    write_evaluation,
    write_json,
    write_page,
)
from cifar_pipeline.reporting.significance import BETTER, EQUAL, UNCLEAR, WORSE, format_p, holm, mcnemar_test
from cifar_pipeline.reporting.tables import write_table
from cifar_pipeline.utils.text import count_noun

# The names of the models on the page and in file names, in the order in which the user gave them.
LETTERS = ascii_lowercase
DIFFERENCES_FILE = "differences.csv"
COMPARISON_FILES = (METRICS_FILE, REPORT_FILE, PREDICTIONS_FILE, DIFFERENCES_FILE)


@dataclass(frozen=True)
class PairedTest:
    """McNemar's test of a model against the first one.

    Attributes:
        first, other: letters of the two models.
        first_only: number of images on which only the first model is right.
        other_only: number of images on which only the other one is.
        p: p-value, corrected for the number of models that are compared with the first.
        level: significance level.
        num_tests: the number of tests for which `p` is corrected.
    """

    first: str
    other: str
    first_only: int
    other_only: int
    p: float
    level: float
    num_tests: int

    @property
    def verdict(self) -> str:
        """Verdict on the other model: better or worse beyond chance, or neither."""
        if not self.first_only + self.other_only:
            return EQUAL
        if self.p >= self.level:
            return UNCLEAR
        return BETTER if self.other_only > self.first_only else WORSE

    @property
    def sentence(self) -> str:
        """The result in words, with the numbers of images and the p-value."""
        first, other = self.first.upper(), self.other.upper()
        if self.verdict == EQUAL:
            return f"{first} and {other} are right on the same images, so that they cannot be told apart."
        counts = f"only {first} is right on {count_noun(self.first_only, 'image')}, only {other} on {self.other_only:,}"
        method = f"McNemar's exact test, {format_p(self.p, self.level)}"
        if self.num_tests > 1:
            method += f", corrected for {self.num_tests} models by Holm's method"
        method += f"; level {self.level:g}"
        if self.verdict == UNCLEAR:
            return f"{first} and {other} cannot be told apart on these images: {counts} ({method})."
        return f"{other} is {self.verdict} than {first} beyond chance: {counts} ({method})."


@dataclass(frozen=True)
class ModelComparison:
    """Results of several models on the same images, in the order in which the user named them.

    Attributes:
        evaluations: of each model, on all images of the classes that it knows.
        chosen: computes the metrics that the user chose.
        level: significance level.
        num_shown: maximum number of images to show for each direction of a pair.
    """

    evaluations: Sequence[ModelEvaluation]
    chosen: ChosenMetrics
    level: float
    num_shown: int

    @property
    def models(self) -> list[ModelOutputs]:
        """The outputs of each model."""
        return [evaluation.outputs for evaluation in self.evaluations]

    @property
    def letters(self) -> str:
        """A letter for each model."""
        return LETTERS[: len(self.evaluations)]

    @cached_property
    def is_common(self) -> np.ndarray:
        """Mask of the images whose class all models know, `[N] bool`."""
        return np.asarray(np.logical_and.reduce([model.is_known for model in self.models]))

    @property
    def num_images(self) -> int:
        """The number of images on which the models are compared."""
        return int(self.is_common.sum())

    @property
    def title(self) -> str:
        """Title of the page: the models and the data."""
        return f"{' and '.join(model.address for model in self.models)} on {self.evaluations[0].data_title}"

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The metrics of each model on the common images, as `ModelOutputs.metrics` returns them."""
        bins = self.evaluations[0].options.calibration_bins
        return [model.metrics(self.is_common, bins, self.chosen) for model in self.models]

    def only_right(self, right: int, wrong: int) -> np.ndarray:
        """Mask of the common images on which the model with one index is right, and the other is wrong, `[N] bool`."""
        return np.asarray(self.is_common & self.models[right].correct & ~self.models[wrong].correct)

    @cached_property
    def tests(self) -> list[PairedTest]:
        """The test of each model but the first against the first."""
        counts = [
            (int(self.only_right(0, index).sum()), int(self.only_right(index, 0).sum()))
            for index in range(1, len(self.models))
        ]
        corrected = holm(np.array([mcnemar_test(*pair) for pair in counts]))
        return [
            PairedTest(self.letters[0], letter, *pair, float(p), self.level, len(counts))
            for letter, pair, p in zip(self.letters[1:], counts, corrected, strict=True)
        ]

    @property
    def differs(self) -> np.ndarray:
        """Mask of the images for which the models predict different classes, `[N] bool`."""
        predicted = [np.array([*map(normalized_name, model.classes)])[model.predicted] for model in self.models]
        return np.asarray(np.logical_or.reduce([names != predicted[0] for names in predicted[1:]]))

    def as_json(self) -> dict[str, Any]:
        """Return the content of metrics.json."""
        models = {}
        for letter, evaluation, measured in zip(self.letters, self.evaluations, self.metrics, strict=True):
            interval = wilson_interval(self._num_correct(evaluation.outputs), self.num_images)
            models[letter] = {
                "model": dict(evaluation.outputs.facts),
                "metrics": {**measured["test"], "accuracy_interval": [round(bound, 6) for bound in interval]},
            }
        return {
            "data": dict(self.evaluations[0].data),
            "images": self.num_images,
            "models": models,
            "tests": [
                {
                    "models": [test.first, test.other],
                    f"only_{test.first}_correct": test.first_only,
                    f"only_{test.other}_correct": test.other_only,
                    "p": test.p,
                    "significance_level": test.level,
                    "result": test.verdict,
                }
                for test in self.tests
            ],
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the header and rows of the metrics side by side: a row for each metric, a column for each model."""
        names = list(dict.fromkeys(name for measured in self.metrics for name in measured["test"]))
        correct = [self._num_correct(model) for model in self.models]
        intervals = [wilson_interval(count, self.num_images) for count in correct]
        rows = [
            [_metric_title(name), *(_format(name, measured["test"].get(name)) for measured in self.metrics)]
            for name in names
        ]
        rows.insert(1, ["95 % interval", *(f"{100 * low:.2f} to {100 * high:.2f} %" for low, high in intervals)])
        rows.append(["Errors", *(f"{self.num_images - count:,}" for count in correct)])
        return ["", *self.letters.upper()], rows

    def _num_correct(self, model: ModelOutputs) -> int:
        return int((model.correct & self.is_common).sum())

    def recall_table(self) -> list[tuple[str, int, list[str]]]:
        """List (class, images, recall of each model) of the classes with the largest differences; without many, all."""
        options = self.evaluations[0].options
        recalls = [
            {name: values["recall"] for name, values in measured["per_class"].items() if values["support"]}
            for measured in self.metrics
        ]
        support = {name: values["support"] for name, values in self.metrics[0]["per_class"].items()}
        names = [name for name in recalls[0] if all(name in other for other in recalls)]
        if options.is_many(names):
            spread = {name: max(r[name] for r in recalls) - min(r[name] for r in recalls) for name in names}
            names = sorted(names, key=lambda name: -spread[name])[: options.num_listed_classes]
        return [(name, support[name], [percent(recall[name], 1) for recall in recalls]) for name in names]

    def cards(self, right: int, wrong: int) -> list[ImageCard]:
        """Make cards of the images on which only one of two models is right, the most confident errors first."""
        models = self.models
        mask = self.only_right(right, wrong)
        # The larger of the two sizes at which the models see the images.
        largest = max((models[right], models[wrong]), key=lambda model: model.images.shape[0])
        cards = []
        for index in sort_by_confidence(mask, models[wrong].confidence)[: self.num_shown].tolist():
            pair = sorted((right, wrong))
            caption = ", ".join(f"{self.letters[k].upper()}: {_prediction(models[k], index)}" for k in pair)
            name = models[right].names[index]
            cards.append(
                ImageCard(image_uri(largest.images[index]), f"Image of class {name}", f"actual {name}; {caption}")
            )
        return cards


def _prediction(model: ModelOutputs, index: int) -> str:
    return f"{model.classes[model.predicted[index]]} ({percent(model.confidence[index], 0)})"


def _metric_title(name: str) -> str:
    return "Top-3 accuracy" if name == "top3_accuracy" else heading_name(name)


def _format(name: str, value: float | None) -> str:
    if value is None:
        return "n/a"
    # As in the tiles of the pages.
    return f"{100 * value:.2f} %" if name == "calibration_error" else format_metric(name, value) + unit(name)


def write_comparison(folder: Path, comparison: ModelComparison, data_rows: Rows) -> dict[Path, Exception]:
    """Write metrics.json, predictions.csv, differences.csv, report.html, and a folder with the results of each model.

    Returns:
        the errors of the pages and figures that failed.
    """
    models, letters = comparison.models, comparison.letters
    failed: dict[Path, Exception] = {}
    for letter, evaluation in zip(letters, comparison.evaluations, strict=True):
        (folder / letter).mkdir()
        failed |= write_evaluation(folder / letter, evaluation)
    write_json(folder / METRICS_FILE, comparison.as_json())
    write_table(folder / PREDICTIONS_FILE, *prediction_rows(models, letters))
    write_table(folder / DIFFERENCES_FILE, *prediction_rows(models, letters, comparison.differs))
    page = partial(write_page, html=lambda: render_comparison(comparison, data_rows))
    return failed | write_each({folder / REPORT_FILE: page}, comparison.title)


def render_comparison(comparison: ModelComparison, data_rows: Rows) -> str:
    """Render the page that compares the models as HTML."""
    header, rows = comparison.table()
    letters = comparison.letters.upper()
    pairs = [(0, index, test) for index, test in enumerate(comparison.tests, 1)]
    return render(
        "model_comparison.html",
        title=comparison.title,
        data_title=comparison.evaluations[0].data_title,
        images=comparison.num_images,
        left_out=len(comparison.is_common) - comparison.num_images,
        sentences=[test.sentence for test in comparison.tests],
        header=header,
        rows=rows,
        models=[
            (letter, evaluation.outputs.address, evaluation, f"{letter.lower()}/{REPORT_FILE}")
            for letter, evaluation in zip(letters, comparison.evaluations, strict=True)
        ],
        letters=list(letters),
        recall=comparison.recall_table(),
        data_rows=data_rows,
        differences=[
            {
                "heading": f"Only {letters[right]} is right ({letters[wrong]} is wrong)",
                "count": count,
                "cards": comparison.cards(right, wrong),
            }
            for first, other, test in pairs
            for right, wrong, count in ((first, other, test.first_only), (other, first, test.other_only))
        ],
        num_differing=int(comparison.differs.sum()),
    )
