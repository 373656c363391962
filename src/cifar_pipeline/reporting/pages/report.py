"""reports/report.html: one evaluation, told to a person, from its accuracy to the pixels that decided."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cifar_pipeline.files import whole_file
from cifar_pipeline.reporting.answers import Answers
from cifar_pipeline.reporting.calibration import Reliability, reliability, reliability_diagram
from cifar_pipeline.reporting.curves import learning_curve
from cifar_pipeline.reporting.evidence import Attributions
from cifar_pipeline.reporting.interval import wilson
from cifar_pipeline.reporting.pages.document import render
from cifar_pipeline.reporting.pages.embedded import figure_uri
from cifar_pipeline.reporting.pages.matrix import confusion
from cifar_pipeline.reporting.pages.origin import provenance, recipe
from cifar_pipeline.reporting.pages.published import compared
from cifar_pipeline.reporting.pages.seen import filters, looked_at, mistakes
from cifar_pipeline.reporting.pages.words import about_calibration, about_curve, direction


@dataclass(frozen=True)
class Evaluation:
    """All that the page tells of.

    Attributes:
        run: id and name of the MLflow run.
        facts: what the training left about itself (models/training.json).
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
    answers: Answers
    images: np.ndarray
    history: pd.DataFrame
    filters: np.ndarray | None
    attributions: Attributions
    published: Mapping[str, Any]

    @property
    def title(self) -> str:
        """What is named over figures and pages."""
        return f"{self.run['name']} on {self.caption}"


def write_report(path: Path, evaluation: Evaluation, bins: int, shown_mistakes: int) -> Path:
    """Write the page; `bins` are those of the calibration error. The same evaluation gives the same bytes."""
    with whole_file(path) as part:
        part.write_text(report(evaluation, bins, shown_mistakes), encoding="utf-8", newline="\n")
    return path


def report(evaluation: Evaluation, bins: int, shown_mistakes: int) -> str:
    """The page as text."""
    metrics, answers = evaluation.metrics, evaluation.answers
    images = len(answers.labels)
    return render(
        "report.html",
        title=evaluation.title,
        fallback=metrics["dataset"]["fallback"],
        dataset=metrics["dataset"]["title"],
        test=metrics["test"],
        weighted=bool(evaluation.facts.get("recipe", {}).get("loss", {}).get("class_weights")),
        images=images,
        interval=wilson(int(answers.right.sum()), images),
        parameters=metrics["parameters"],
        compared=compared(metrics, evaluation.published),
        recipe=recipe(evaluation.facts),
        provenance=provenance(evaluation.run, evaluation.facts, metrics),
        curves=[_curve(evaluation.history, name) for name in ("loss", "accuracy")],
        confusion=confusion(answers, evaluation.caption),
        per_class=metrics["per_class"],
        calibration=_calibration(reliability(answers, bins)),
        mistakes=mistakes(answers, evaluation.images, shown_mistakes),
        wrong=int(images - answers.right.sum()),
        looked_at=looked_at(answers, evaluation.images, evaluation.attributions),
        why_none=evaluation.attributions.why_none,
        filters=filters(evaluation.filters),
    )


def _curve(history: pd.DataFrame, name: str) -> dict[str, str]:
    return {"source": figure_uri(learning_curve(history, name)), "words": about_curve(history, name)}


def _calibration(found: Reliability) -> dict[str, Any]:
    return {
        "source": figure_uri(reliability_diagram(found)),
        "words": about_calibration(found),
        "bins": len(found.counts),
        "direction": direction(found.excess),
        "points": f"{100 * abs(found.excess):.1f}",
    }
