"""Test whether the rows of a sweep's comparison differ from the best row beyond chance, or two models on some images.

Paired tests over the seeds, folds or splits that both rows have finished, corrected for the number of rows; of two
models, over the images of which one is right and the other is wrong.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cifar_pipeline.reporting.metric_names import SPLIT_NAMES
from cifar_pipeline.reporting.sweep_comparison import (
    REPLICATE_KEYS,
    SPLIT_KEYS,
    Comparison,
    TrialGroup,
    cell_text,
    group_name,
    to_float,
)
from cifar_pipeline.utils.text import list_names

Floats = NDArray[np.float64]

BEST, WORSE, BETTER, UNCLEAR, EQUAL = "best", "worse", "better", "no clear difference", "equal values"
OTHER_DATA = "other data: not comparable"
OTHER_IMAGES = "other images: cannot say"
ONE_RUN = "one run each: cannot say"
# Differences of which the spread is unknown, so that the test is undefined: all equal, but not zero.
EQUAL_DIFFERENCES = "equal differences: cannot say"
# Differences below this fraction of the values are rounding errors.
ROUNDING = 1e-12
# Names that a sentence lists before it only counts.
MAX_NAMES = 5


@dataclass(frozen=True)
class Difference:
    """Result of comparing a row with the best one.

    Attributes:
        verdict: one of the constants above, or another reason why nothing can be said; empty for a row without a value.
        p: p-value, corrected for the number of rows; NaN without a test.
        level: the significance level.
    """

    verdict: str
    p: float = math.nan
    level: float = math.nan

    @property
    def text(self) -> str:
        """The verdict with the p-value: `worse (p = 0.01)`."""
        without_p = math.isnan(self.p) or self.verdict == EQUAL
        return self.verdict if without_p else f"{self.verdict} ({format_p(self.p, self.level)})"


def paired_t_test(values: Floats, references: Floats, overlap: float = 0.0) -> Floats:
    """Compute two-sided p-values of the corrected resampled t-test.

    The training images of different folds or random splits overlap, so their results are not independent, and the
    plain paired test finds differences too often. The correction enlarges the variance of the mean difference from
    `1/n` to `1/n + overlap` times that of the differences. With `overlap` 0 it is `scipy.stats.ttest_rel`.

    Source: C. Nadeau and Y. Bengio, "Inference for the Generalization Error", Machine Learning 52, 2003.

    Args:
        values: `[rows, n]`; NaN for a missing one, which is left out together with its reference.
        references: what `values` are paired with, in the same shape.
        overlap: number of validation images per training image; 0 if the pairs are independent.

    Returns:
        `[rows]`; 1 if all pairs are equal, NaN if there are fewer than two or if all differences are equal otherwise.
    """
    from scipy import stats  # here, because it takes most of a second to import

    differences = references - values
    present = np.isfinite(differences)
    number = present.sum(axis=1)
    kept = np.where(present, differences, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = kept.sum(axis=1) / number
        deviations = np.where(present, differences - mean[:, None], 0.0)
        variance = (deviations**2).sum(axis=1) / (number - 1)
        t = mean / np.sqrt((1 / number + overlap) * variance)
        p: Floats = 2 * stats.t.sf(np.abs(t), number - 1)
    scale = np.abs(np.where(present, np.fmax(np.abs(references), np.abs(values)), 0.0)).max(axis=1, initial=0.0)
    constant = np.abs(deviations).max(axis=1, initial=0.0) <= ROUNDING * scale
    zero = np.abs(kept).max(axis=1, initial=0.0) <= ROUNDING * scale
    return np.where(number < 2, np.nan, np.where(zero, 1.0, np.where(constant, np.nan, p)))


def mcnemar_test(first_only: int, second_only: int) -> float:
    """Compute the two-sided p-value of McNemar's exact test: whether two models have the same accuracy.

    Images on which both are right, or both wrong, do not count. If the accuracy is the same, each of the others is as
    likely to be one on which only the first model is right, so their number has a binomial distribution.

    Source: Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12, 1947.

    Args:
        first_only: number of images on which only the first model is right.
        second_only: number of images on which only the second one is.
    """
    from scipy import stats  # here, because it takes most of a second to import

    total = first_only + second_only
    return float(stats.binomtest(first_only, total).pvalue) if total else 1.0


def holm(p: Floats) -> Floats:
    """Correct p-values for their number, so that the chance of any false finding stays below the level; NaN stays NaN.

    Source: S. Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6,
    1979. SciPy has no function for it.
    """
    corrected = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    ascending = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(ascending), 0, -1)
    corrected[ascending] = np.minimum(1.0, np.maximum.accumulate(p[ascending] * factors))
    return corrected


@dataclass(frozen=True)
class PairedRuns:
    """Values of each row of a comparison, paired with those of the first row.

    Attributes:
        values, references: `[rows, pairs]` of the row and of the first row; NaN where one of them has none.
        has_same_images: `[rows]`, whether both trials of each pair have the same training and validation images.
        noun: what a pair is: a fold, a split or a seed.
        overlap: number of validation images per training image if the pairs are folds or splits, otherwise 0; NaN if
            unknown.
    """

    values: Floats
    references: Floats
    has_same_images: NDArray[np.bool_]
    noun: str
    overlap: float

    @cached_property
    def counts(self) -> list[int]:
        """The number of pairs of each row; of the first one, which is paired with itself, the largest."""
        return [int(np.isfinite(row).sum()) for row in self.values]


def pair_runs(comparison: Comparison) -> PairedRuns:
    """Pair the finished trials of each group with those of the first one that have the same seed, fold and split.

    Trials on one split, which differ in their seed, are averaged: they share its images, so several seeds on a fold are
    not as good as several folds.
    """
    runs = pd.DataFrame(
        [
            {
                "row": row,
                "run": tuple(cell_text(trial.get(key)) for key in comparison.replicates),
                "split": tuple(cell_text(trial.get(key)) for key in comparison.replicates if key in SPLIT_KEYS),
                "value": to_float(trial.get(comparison.metric)),
                "images": cell_text(trial.get("images")),
                "overlap": _overlap(trial),
            }
            for row, group in enumerate(comparison.groups)
            for trial in group.with_value(comparison.metric)
        ]
    ).drop_duplicates(["row", "run"])
    shape = (len(comparison.groups), runs["run"].nunique())
    row, run = runs["row"].to_numpy(), pd.factorize(runs["run"])[0]
    values, images = np.full(shape, np.nan), np.zeros(shape, int)
    values[row, run], images[row, run] = runs["value"], pd.factorize(runs["images"])[0]
    is_common = np.isfinite(values) & np.isfinite(values[0])
    has_same_images = (~is_common | (images == images[0])).all(axis=1)
    if runs["split"].nunique() <= 1:
        references = np.where(is_common, values[0], np.nan)
        return PairedRuns(np.where(is_common, values, np.nan), references, has_same_images, "seed", 0.0)
    split = np.zeros(shape[1], int)
    split[run] = pd.factorize(runs["split"])[0]
    to_split = np.eye(split.max() + 1)[split]
    with np.errstate(invalid="ignore"):
        means, references = (
            np.where(is_common, table, 0.0) @ to_split / (is_common @ to_split)
            for table in (values, np.broadcast_to(values[0], shape))
        )
    noun = next(REPLICATE_KEYS[key] for key in comparison.replicates if comparison.trials[key].nunique() > 1)
    return PairedRuns(means, references, has_same_images, noun, float(runs["overlap"].mean()))


def _overlap(trial: Mapping[str, Any]) -> float:
    train, val = (to_float(trial.get(column)) for column in ("train_images", "val_images"))
    return val / train if train else math.nan


def compare_with_best(comparison: Comparison) -> list[Difference]:
    """Compare each group with the first one.

    The p-values are corrected for the number of rows that are tested. The first row was not chosen beforehand, but for
    its values, so this does not bound the chance that any of several equal rows is called worse. What is bounded is the
    chance that the best choice is: with independent seeds it is below the level for any number of rows
    (tests/reporting/test_significance.py).
    """
    groups, level = comparison.groups, comparison.significance_level
    if not groups or not groups[0].with_value(comparison.metric):
        return [Difference("")] * len(groups)
    pairs = pair_runs(comparison)
    verdicts = [_untested(comparison, pairs, row) for row in range(len(groups))]
    is_tested = np.array([verdict is None for verdict in verdicts])
    p = paired_t_test(pairs.values, pairs.references, pairs.overlap)
    corrected = holm(np.where(is_tested, p, np.nan))
    is_better = np.nan_to_num(pairs.references - pairs.values).sum(axis=1) * _sign(comparison) < 0
    is_equal = np.all(
        np.isclose(pairs.values, pairs.references, rtol=ROUNDING, atol=0, equal_nan=True), axis=1
    ).tolist()
    results = []
    for row, verdict in enumerate(verdicts):
        if verdict is None:
            clear = BETTER if is_better[row] else WORSE
            unclear = EQUAL if is_equal[row] else UNCLEAR
            verdict = EQUAL_DIFFERENCES if math.isnan(p[row]) else clear if corrected[row] < level else unclear
        results.append(Difference(verdict, float(corrected[row]), level))
    return results


def _untested(comparison: Comparison, pairs: PairedRuns, row: int) -> str | None:
    """Return the verdict on a row that is not tested, and None for one that is."""
    best, group, count = comparison.groups[0], comparison.groups[row], pairs.counts[row]
    if not group.with_value(comparison.metric):
        return ""
    if row == 0:
        return BEST
    if _datasets([group]) != _datasets([best]):
        return OTHER_DATA
    if not pairs.has_same_images[row]:
        return OTHER_IMAGES
    if max(len(other.with_value(comparison.metric)) for other in (best, group)) == 1 and count == 1:
        return ONE_RUN
    if count < 2:
        return f"{'one' if count else 'no'} {pairs.noun} in common: cannot say"
    return "unknown number of images: cannot say" if math.isnan(pairs.overlap) else None


def _datasets(groups: Iterable[TrialGroup]) -> list[str]:
    """List the data sets of the groups' trials, without those of trials that never started."""
    names = dict.fromkeys(cell_text(member.get("dataset")) for group in groups for member in group.members)
    return sorted(filter(None, names))


def _sign(comparison: Comparison) -> int:
    return -1 if comparison.mode == "min" else 1


def format_p(p: float, level: float) -> str:
    """Format a p-value as `p = 0.012` or `p < 0.001`, with enough digits to stay on its side of the level."""
    if p < 0.001 <= level:
        return "p < 0.001"
    texts = (f"{p:.{digits}g}" for digits in range(2, 8))
    return f"p = {next((text for text in texts if (float(text) < level) == (p < level)), p)}"


def describe_differences(comparison: Comparison) -> list[str]:
    """Describe in sentences how far the rows can be compared, and last which ones are not worse than the best."""
    groups = comparison.groups
    if not groups or not groups[0].with_value(comparison.metric):
        return []
    differences, sentences = compare_with_best(comparison), []
    datasets = _datasets(groups)
    if len(datasets) > 1:
        sentences.append(
            f"The trials are on different data ({list_names(datasets)}), whose values are not comparable: compare only "
            "rows on the same data."
        )
    if any(difference.verdict == OTHER_IMAGES for difference in differences):
        split = SPLIT_NAMES.get(comparison.metric.partition("/")[0], "validation")
        sentences.append(
            f"The {split} images are not the same in all rows, so a difference may come from the images and not from "
            "the choices."
        )
    counts = [len(group.with_value(comparison.metric)) for group in groups]
    fewer = [
        f"{group_name(comparison, group)} ({count} of {counts[0]})"
        for group, count in zip(groups, counts, strict=True)
        if 0 < count < counts[0]
    ]
    if fewer:
        sentences.append(f"Ranked below the rows with more finished runs: {_listed(fewer)}.")
    return [*sentences, *_conclusion(comparison, differences)]


def _conclusion(comparison: Comparison, differences: Sequence[Difference]) -> list[str]:
    compared = [
        (group, difference)
        for group, difference in zip(comparison.groups[1:], differences[1:], strict=True)
        if difference.verdict not in ("", OTHER_DATA)
    ]
    verdicts = {difference.verdict for _, difference in compared}
    if verdicts == {ONE_RUN}:
        return [
            "One run each: cannot say whether a difference is more than chance. To find out, sweep the seed "
            "(seed=0,1,2) or the folds of the data ('data.fold=range(5)') as well."
        ]
    tested = sum(not math.isnan(difference.p) for _, difference in compared)
    if not tested:
        return []
    pairs, best = pair_runs(comparison), group_name(comparison, comparison.groups[0])
    method = f"paired t-test over {pairs.counts[0]} {pairs.noun}s"
    method += ", corrected for their common training images" if pairs.overlap else ""
    method += f"; p corrected for {tested} rows by Holm's method" if tested > 1 else ""
    method += f"; level {comparison.significance_level:g}"
    unclear = [group_name(comparison, group) for group, difference in compared if difference.verdict != WORSE]
    if unclear:
        return [f"Cannot be told apart from the best ({best}): {_listed(unclear)} ({method})."]
    return [f"Every other row is worse than the best ({best}) beyond chance ({method})."]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"{'; '.join(names[:MAX_NAMES])}{more}"
