"""Tests of the differences between the rows of a sweep's comparison, against SciPy, published values and simulation."""

import csv
import io
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_comparison import NAN, printed, sweep, trial

from cifar_pipeline.reporting.significance import (
    Difference,
    compare_with_best,
    describe_differences,
    format_p,
    holm,
    paired_t_test,
)
from cifar_pipeline.reporting.sweep_comparison import Comparison
from cifar_pipeline.reporting.sweep_tables import to_csv, to_markdown

SIMULATIONS = 4000


def test_without_overlap_the_test_is_scipys_paired_t_test() -> None:
    random = np.random.default_rng(0)
    values, references = random.normal(size=(2, 50, 7))
    references += 0.5
    values[random.uniform(size=values.shape) < 0.2] = NAN
    expected = stats.ttest_rel(references, values, axis=1, nan_policy="omit").pvalue
    assert (np.isnan(values).sum(axis=1) > 0).any() and not np.isnan(expected).any()
    np.testing.assert_allclose(paired_t_test(values, references), expected, rtol=1e-12)


def test_with_overlap_the_variance_is_that_of_nadeau_and_bengio() -> None:
    values, references = np.random.default_rng(1).normal(size=(2, 20, 5))
    differences = references - values
    t = differences.mean(axis=1) / np.sqrt((1 / 5 + 1 / 4) * differences.var(axis=1, ddof=1))
    expected = [2 * (1 - stats.t.cdf(abs(value), df=4)) for value in t]
    np.testing.assert_allclose(paired_t_test(values, references, overlap=1 / 4), expected, rtol=1e-9)


@pytest.mark.parametrize("folds", [3, 5, 10])
def test_equal_choices_differ_over_folds_as_often_as_the_level_says(folds: int) -> None:
    """The plain test, which takes the folds for independent, finds a difference more often.

    The differences have the correlation that Nadeau and Bengio assume: the share of the validation images.
    """
    random, correlation = np.random.default_rng(folds), 1 / folds
    shared, own = random.normal(size=(SIMULATIONS, 1)), random.normal(size=(SIMULATIONS, folds))
    differences = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
    zeros = np.zeros_like(differences)
    corrected, plain = (paired_t_test(zeros, differences, overlap) < 0.05 for overlap in (1 / (folds - 1), 0.0))
    assert 0.04 < corrected.mean() < 0.06
    assert plain.mean() > 0.1


def test_what_has_no_spread_is_not_tested() -> None:
    references = np.array([[0.55, 0.65, 0.7]] * 4)
    values = np.array([[0.55, 0.65, 0.7], [0.45, 0.55, 0.6], [0.4, NAN, NAN], [NAN, NAN, NAN]])
    assert (references - values)[1].std() > 0  # from rounding alone
    np.testing.assert_array_equal(paired_t_test(values, references), [1, NAN, NAN, NAN])


@pytest.mark.parametrize(
    ("p", "corrected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # p.adjust(c(...), "holm") of R
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),
        ([0.5, 0.9], [1, 1]),
        ([0.2], [0.2]),
        ([NAN, 0.03, NAN, 0.02], [NAN, 0.04, NAN, 0.04]),
        ([], []),
    ],
)
def test_holms_correction_has_known_values(p: list[float], corrected: list[float]) -> None:
    np.testing.assert_allclose(holm(np.array(p)), corrected)


def test_the_best_choice_is_rarely_called_worse() -> None:
    """Of ten equal choices, the first one counts as the best: another one has the highest mean by chance.

    That any of them is called worse happens more often, as docs/sweeps.md says.
    """
    random, is_worse = np.random.default_rng(0), []
    for _ in range(400):
        values = 0.5 + 0.02 * random.normal(size=(1, 5)) + 0.01 * random.normal(size=(10, 5))
        verdicts = texts(over({f"{row}": values[row] for row in range(10)}))
        is_worse.append([verdicts[f"{row}"].startswith("worse") for row in range(10)])
    assert np.mean(is_worse, axis=0)[0] < 0.05
    assert 0.07 < np.any(is_worse, axis=1).mean() < 0.15


def over(
    values: Mapping[str, Any],
    key: str = "seed",
    data: Callable[[str, int], dict[str, Any]] = lambda *_: {},
    **fields: Any,
) -> Comparison:
    """Make a sweep over optimizers and another key, whose values are numbered; NaN is a failed trial.

    Args:
        data: further columns of a trial by optimizer and number.
    """
    trials = [
        trial(f"{name}-{number}", value, "FINISHED" if math.isfinite(value) else "FAILED", optimizer=name)
        | {key: str(number)}
        | data(name, number)
        for name, row in values.items()
        for number, value in enumerate(row)
    ]
    return sweep(*trials, swept=("optimizer", key), **fields)


def texts(comparison: Comparison) -> dict[str, str]:
    rows = zip(comparison.groups, compare_with_best(comparison), strict=True)
    return {", ".join(group.values): difference.text for group, difference in rows}


SEEDS = {
    "adam": (0.60, 0.64, 0.62, 0.65),
    "adamw": (0.61, 0.62, 0.62, 0.64),
    "sgd": (0.50, 0.53, 0.52, 0.56),
    "broken": (NAN, NAN, NAN, NAN),
}


def test_rows_are_compared_with_the_best_by_paired_tests() -> None:
    comparison = over(SEEDS)
    p = [stats.ttest_rel(SEEDS["adam"], SEEDS[name]).pvalue for name in ("adamw", "sgd")]
    assert p[0] > 0.05 > 2 * p[1]
    differences = compare_with_best(comparison)
    assert [difference.verdict for difference in differences] == ["best", "no clear difference", "worse", ""]
    assert [difference.p for difference in differences[1:3]] == pytest.approx([p[0], 2 * p[1]])
    assert describe_differences(comparison) == [
        "Cannot be told apart from the best (optimizer=adam): optimizer=adamw (paired t-test over 4 seeds; p corrected "
        "for 2 rows by Holm's method; level 0.05)."
    ]
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(to_csv(comparison)))}
    assert rows["sgd-2"]["difference"] == "worse" and float(rows["sgd-2"]["p"]) == pytest.approx(2 * p[1])
    assert (rows["adam-0"]["difference"], rows["adam-0"]["p"]) == ("best", "")
    assert (rows["broken-0"]["difference"], rows["broken-0"]["p"]) == ("", "")


def test_the_direction_of_the_metric_does_not_matter() -> None:
    comparison = over(SEEDS, metric="val/loss", mode="min")  # 2 - 2 * accuracy
    assert texts(comparison) == texts(over(SEEDS))


def test_the_level_decides() -> None:
    p = compare_with_best(over(SEEDS))[2].p
    for level, verdict in ((0.05, "worse"), (p * 0.99, "no clear difference"), (p * 1.01, "worse")):
        comparison = over(SEEDS, significance_level=level)
        assert compare_with_best(comparison)[2].verdict == verdict
        assert f"level {level:g}" in describe_differences(comparison)[-1]


def test_where_every_other_row_is_worse_a_sentence_says_so() -> None:
    values = {name: SEEDS[name] for name in ("adam", "sgd")}
    assert describe_differences(over(values)) == [
        "Every other row is worse than the best (optimizer=adam) beyond chance (paired t-test over 4 seeds; level "
        "0.05)."
    ]


def folds(optimizer: str, fold: int) -> dict[str, Any]:
    return {"dataset": "digits", "images": f"fold {fold}", "train_images": 40, "val_images": 10}


def test_folds_are_tested_with_the_share_of_their_images() -> None:
    comparison = over(SEEDS, "data.fold", folds)
    p = [
        float(paired_t_test(np.array([SEEDS[name]]), np.array([SEEDS["adam"]]), overlap=1 / 4)[0])
        for name in ("adamw", "sgd")
    ]
    assert [difference.p for difference in compare_with_best(comparison)[1:3]] == pytest.approx([p[0], 2 * p[1]])
    assert p[1] > stats.ttest_rel(SEEDS["adam"], SEEDS["sgd"]).pvalue
    assert (
        "paired t-test over 4 folds, corrected for their common training images;" in describe_differences(comparison)[0]
    )


def over_folds_and_seeds(missing: tuple[tuple[str, int, int], ...] = ()) -> Comparison:
    trials = []
    for name, values in (("adam", SEEDS["adam"]), ("sgd", SEEDS["sgd"])):
        for fold, value in enumerate(values):
            for seed in range(3):
                is_missing = (name, fold, seed) in missing
                row = trial(f"{name}-{fold}-{seed}", NAN if is_missing else value + 0.01 * (seed - 1) * (fold + 1))
                row |= {"status": "FAILED"} if is_missing else {}
                trials.append(row | {"optimizer": name, "data.fold": str(fold), "seed": str(seed)} | folds(name, fold))
    return sweep(*trials, swept=("optimizer", "data.fold", "seed"))


def test_seeds_on_one_fold_are_averaged_before_the_test() -> None:
    """Otherwise they would count as three times as many folds."""
    comparison = over_folds_and_seeds()
    expected = paired_t_test(np.array([SEEDS["sgd"]]), np.array([SEEDS["adam"]]), overlap=1 / 4)
    assert compare_with_best(comparison)[1].p == pytest.approx(expected[0])
    assert "over 12 runs (4 folds, 3 seeds)" in comparison.full_title
    assert "paired t-test over 4 folds" in describe_differences(comparison)[-1]


def test_only_what_both_rows_have_finished_is_compared() -> None:
    missing = (("sgd", 1, 0), ("sgd", 1, 1), ("sgd", 1, 2), ("sgd", 2, 0))
    comparison = over_folds_and_seeds(missing)
    adam = [0.60, 0.62 + 0.01 * 0.5 * 3, 0.65]  # fold 1 is missing, and seed 0 of fold 2
    sgd = [0.50, 0.52 + 0.01 * 0.5 * 3, 0.56]
    expected = paired_t_test(np.array([sgd]), np.array([adam]), overlap=1 / 4)
    assert compare_with_best(comparison)[1].p == pytest.approx(expected[0])
    assert (
        describe_differences(comparison)[0] == "Ranked below the rows with more finished runs: optimizer=sgd (8 of 12)."
    )
    assert "(8 of 12)" in printed(comparison)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.5, NAN, NAN), "one seed in common: cannot say"),
        ((0.60, 0.64, 0.62), "equal values"),
        ((0.59, 0.63, 0.61), "equal differences: cannot say"),
        ((0.70, 0.80, NAN), "no clear difference (p = 0.1"),
        ((0.70, 0.75, NAN), "better (p = 0.03)"),
    ],
)
def test_rows_that_the_test_cannot_judge_say_why(values: tuple[float, ...], text: str) -> None:
    """A row with fewer finished runs is not ranked above the best, even where it is better on those."""
    comparison = over({"adam": (0.60, 0.64, 0.62), "sgd": values})
    assert texts(comparison)["sgd"].startswith(text) and texts(comparison)["adam"] == "best"


def test_rows_without_a_common_seed_are_not_compared() -> None:
    comparison = over({"adam": (0.6, 0.7, NAN, NAN), "sgd": (NAN, NAN, 0.5, 0.4)})
    assert texts(comparison) == {"adam": "best", "sgd": "no seed in common: cannot say"}


def test_of_one_run_each_nothing_can_be_said() -> None:
    comparison = sweep(*(trial(name, value, optimizer=name) for name, value in (("a", 0.5), ("b", 0.9), ("c", 0.1))))
    assert texts(comparison) == {"b": "best", "a": "one run each: cannot say", "c": "one run each: cannot say"}
    assert "cannot say" not in to_markdown(comparison).partition("\n\nOne run each")[0]
    (sentence,) = describe_differences(comparison)
    assert sentence.startswith("One run each: cannot say whether a difference is more than chance.")
    assert "difference" not in printed(comparison)  # the sentence below says it of all rows
    assert to_csv(comparison).count("one run each: cannot say") == 2


def test_one_row_has_nothing_to_differ_from() -> None:
    comparison = sweep(*(trial(str(i), 0.5 + 0.1 * i, seed=str(i)) for i in range(3)), swept=("seed",))
    assert describe_differences(comparison) == []
    assert "difference" not in to_markdown(comparison)


def test_other_validation_images_are_not_paired() -> None:
    def half(optimizer: str, seed: int) -> dict[str, Any]:
        return {"dataset": "digits", "images": "half" if optimizer == "sgd" else "all"}

    comparison = over({name: SEEDS[name] for name in ("adam", "adamw", "sgd")}, data=half)
    assert texts(comparison)["sgd"] == "other images: cannot say"
    assert texts(comparison)["adamw"].startswith("no clear difference (p = ")
    sentences = describe_differences(comparison)
    assert sentences[0].startswith("The validation images are not the same in all rows")
    assert "optimizer=adamw; optimizer=sgd (paired t-test over 4 seeds; level" in sentences[1]


def test_other_data_are_not_compared() -> None:
    def dataset(optimizer: str, seed: int) -> dict[str, Any]:
        name = "fashion_mnist" if optimizer == "sgd" else "digits"
        return {"dataset": name, "images": name}

    comparison = over({name: SEEDS[name] for name in ("adam", "adamw", "sgd")}, data=dataset)
    assert texts(comparison)["sgd"] == "other data: not comparable"
    first, last = describe_differences(comparison)
    assert first.startswith("The trials are on different data (digits, fashion_mnist)")
    assert "optimizer=adamw (" in last and "sgd" not in last


def test_folds_without_numbers_of_images_are_not_tested() -> None:
    comparison = over(SEEDS, "data.fold")
    assert texts(comparison)["adamw"] == "unknown number of images: cannot say"


def test_a_p_value_stays_on_its_side_of_the_level() -> None:
    assert [format_p(p, 0.05) for p in (0.0004, 0.012, 0.3, 1.0)] == ["p < 0.001", "p = 0.012", "p = 0.3", "p = 1"]
    assert format_p(0.0496, 0.05) == "p = 0.0496" and format_p(0.0502, 0.05) == "p = 0.05"
    assert format_p(0.0004, 0.0005) == "p = 0.0004"
    assert Difference("worse", 0.0123, 0.05).text == "worse (p = 0.012)"


def test_a_long_list_of_rows_is_cut() -> None:
    random = np.random.default_rng(0)
    comparison = over({f"o{row}": 0.5 + 0.01 * random.normal(size=3) for row in range(9)})
    assert " and 3 more (paired t-test" in describe_differences(comparison)[0]


def test_2000_trials_are_compared_in_seconds() -> None:
    random, start = np.random.default_rng(0), time.process_time()  # other processes do not count
    single = sweep(*(trial(str(i), random.uniform(), optimizer=str(i)) for i in range(2000)))
    for comparison in (single, over({f"o{row}": random.uniform(size=5) for row in range(400)})):
        assert len(pd.read_csv(io.StringIO(to_csv(comparison)))) == 2000
        assert len(to_markdown(comparison).splitlines()) > 400
        assert printed(comparison)
    assert time.process_time() - start < 30  # 3 s on two cores
