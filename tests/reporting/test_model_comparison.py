"""Models on labeled images are measured on the classes that they know, and compared image by image."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_evaluation import OPTIONS

from cifar_pipeline.reporting.metrics import wilson_interval
from cifar_pipeline.reporting.model_comparison import (
    ModelComparison,
    PairedTest,
    render_comparison,
    write_comparison,
)
from cifar_pipeline.reporting.model_evaluation import (
    UNKNOWN,
    ModelEvaluation,
    ModelOutputs,
    match_classes,
    render_evaluation,
    write_evaluation,
)
from cifar_pipeline.reporting.significance import holm, mcnemar_test
from cifar_pipeline.reporting.tables import read_rows

ANIMALS = ("cat", "dog", "horse", "mule")


def outputs(
    predicted: list[str], names: list[str], classes: tuple[str, ...] = ANIMALS, address: str = "models", size: int = 8
) -> ModelOutputs:
    """Make the outputs of a model that predicts these classes, with decreasing confidence."""
    probabilities = np.full((len(names), len(classes)), 0.0, np.float32)
    for row, name in enumerate(predicted):
        confidence = 0.99 - 0.002 * row
        probabilities[row] = (1 - confidence) / (len(classes) - 1)
        probabilities[row, classes.index(name)] = confidence
    images = np.random.default_rng(size).integers(0, 256, (len(names), size, size, 3), np.uint8)
    paths = [f"f/{name}/{row}.png" for row, name in enumerate(names)]
    return ModelOutputs(address, classes, names, paths, probabilities, images, {"address": address})


def evaluation(model: ModelOutputs) -> ModelEvaluation:
    rows = [("data", "f")]
    return ModelEvaluation.of(model, OPTIONS, lambda *_: {}, "f", [("model", model.address)], rows, {"path": "f"})


def comparison(*models: ModelOutputs, **changes: Any) -> ModelComparison:
    compared = ModelComparison([evaluation(model) for model in models], lambda *_: {}, 0.05, 24)
    return dataclasses.replace(compared, **changes)


def test_classes_are_matched_by_name_in_any_order_spelling_and_white_space() -> None:
    classes = ("b", "caf\u00e9", "red  fox", "a")
    assert match_classes(["a", "cafe\u0301", "b", "red fox", "B", "c"], classes).tolist() == [
        3, 1, 0, 2, UNKNOWN, UNKNOWN,
    ]  # fmt: skip


def test_images_of_unknown_classes_are_in_no_metric_and_reported_with_their_predictions() -> None:
    names = ["cat"] * 4 + ["dog"] * 2 + ["zebra"] * 3
    model = outputs(["cat", "cat", "cat", "dog", "dog", "cat", "horse", "horse", "mule"], names)
    result = evaluation(model)
    content = result.as_json()
    assert content["images"] == 6 and result.metrics["accuracy"] == pytest.approx(4 / 6, abs=1e-6)
    assert content["unknown_classes"] == {"zebra": {"images": 3, "predictions": {"horse": 2, "mule": 1}}}
    assert content["metrics"]["accuracy_interval"] == [round(bound, 6) for bound in wilson_interval(4, 6)]
    page = render_evaluation(result).replace("\N{NO-BREAK SPACE}", " ")
    assert "3 more images are of" in page and "horse (67 %), mule (33 %)" in page
    assert result.predictions.confusion_matrix().sum() == 6


def test_classes_without_images_have_no_precision_and_recall(tmp_path: Path) -> None:
    result = evaluation(outputs(["cat", "mule", "dog"], ["cat", "cat", "dog"]))
    assert result.as_json()["classes_without_images"] == ["horse", "mule"]
    failed = write_evaluation(tmp_path, result)
    assert not failed
    rows = {row[0]: row[1:] for row in read_rows(tmp_path / "per_class.csv")}
    assert rows["mule"] == rows["horse"] == ["", "", "", "0"] and rows["dog"] == ["1.0", "1.0", "1.0", "1"]
    page = (tmp_path / "report.html").read_text()
    assert "Without images, so that their recall and precision are not known: horse, mule." in page


def test_every_image_has_a_row_with_its_result(tmp_path: Path) -> None:
    write_evaluation(tmp_path, evaluation(outputs(["cat", "dog", "dog"], ["cat", "cat", "=emu"])))
    rows = list(read_rows(tmp_path / "predictions.csv"))
    assert rows[0] == ["path", "label", "prediction", "probability", "result"]
    assert [(row[1], row[2], row[4]) for row in rows[1:]] == [
        ("cat", "cat", "correct"), ("cat", "dog", "incorrect"), ("=emu", "dog", "unknown class"),
    ]  # fmt: skip
    assert "'=emu" in (tmp_path / "predictions.csv").read_text()


def test_mcnemar_s_exact_test() -> None:
    """By hand: 2 * (1 + 11) / 2 ** 11, and 2 / 2 ** 6."""
    assert mcnemar_test(10, 1) == mcnemar_test(1, 10) == pytest.approx(24 / 2048)
    assert mcnemar_test(0, 6) == pytest.approx(2 / 64)
    assert mcnemar_test(5, 5) == mcnemar_test(0, 0) == 1


@pytest.mark.parametrize(
    ("only_a", "only_b", "verdict", "sentence"),
    [
        (1, 10, "better", "B is better than A beyond chance: only A is right on 1 image, only B on 10 (McNemar's exact "
         "test, p = 0.012; level 0.05)."),
        (10, 1, "worse", "B is worse than A beyond chance: only A is right on 10 images, only B on 1 (McNemar's exact "
         "test, p = 0.012; level 0.05)."),
        (3, 5, "no clear difference", "A and B cannot be told apart on these images: only A is right on 3 images, only "
         "B on 5 (McNemar's exact test, p = 0.73; level 0.05)."),
        (0, 0, "equal values", "A and B are right on the same images, so that they cannot be told apart."),
    ],
)  # fmt: skip
def test_the_result_of_the_test_in_words(only_a: int, only_b: int, verdict: str, sentence: str) -> None:
    names = ["cat"] * (only_a + only_b + 30)
    a = outputs(["cat"] * only_a + ["dog"] * only_b + ["cat"] * 30, names, address="x")
    b = outputs(["dog"] * only_a + ["cat"] * only_b + ["cat"] * 30, names, address="y")
    (result,) = comparison(a, b).tests
    assert (result.first_only, result.other_only, result.verdict) == (only_a, only_b, verdict)
    assert result.sentence == sentence


def test_several_models_are_compared_with_the_first_and_corrected_for_their_number() -> None:
    names = ["cat"] * 40
    first = outputs(["dog"] * 10 + ["cat"] * 30, names)
    second = outputs(["cat"] * 40, names)
    third = outputs(["cat"] * 8 + ["dog"] * 2 + ["cat"] * 30, names)
    tests = comparison(first, second, third).tests
    assert [(test.first, test.other) for test in tests] == [("a", "b"), ("a", "c")]
    np.testing.assert_allclose([test.p for test in tests], holm(np.array([2 / 2**10, 2 / 2**8])))
    assert "corrected for 2 models by Holm's method" in tests[0].sentence


def test_models_with_other_classes_are_compared_on_those_that_all_know(tmp_path: Path) -> None:
    names = ["cat"] * 6 + ["dog"] * 4 + ["fox"] * 5
    a = outputs(["cat"] * 6 + ["dog"] * 4 + ["cat"] * 5, names, ANIMALS, "first")
    b = outputs(["cat"] * 3 + ["fox"] * 3 + ["cat"] * 4 + ["fox"] * 5, names, ("fox", "cat"), "second", size=12)
    compared = comparison(a, b)
    assert compared.num_images == 6
    assert [measured["test"]["accuracy"] for measured in compared.metrics] == [1.0, 0.5]
    assert [item.metrics["accuracy"] for item in compared.evaluations] == [1.0, pytest.approx(8 / 11, abs=1e-6)]
    (test,) = compared.tests
    assert (test.first_only, test.other_only) == (3, 0)
    assert not write_comparison(tmp_path, compared, [("data", "f")])
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["images"] == 6 and content["tests"][0]["only_a_correct"] == 3
    assert content["models"]["b"]["metrics"]["accuracy"] == 0.5
    page = (tmp_path / "report.html").read_text()
    assert "9 more images are of classes that not all of the models know" in page
    assert 'href="b/report.html"' in page and (tmp_path / "b" / "report.html").is_file()


def test_images_on_which_they_differ_are_shown_in_both_directions_and_all_listed(tmp_path: Path) -> None:
    names = ["cat"] * 9
    a = outputs(["dog"] * 5 + ["cat"] * 2 + ["horse"] * 2, names)
    b = outputs(["cat"] * 5 + ["horse"] + ["cat"] + ["mule"] * 2, names, address="other")
    compared = comparison(a, b, num_shown=3)
    assert not write_comparison(tmp_path, compared, [])
    header, *rows = read_rows(tmp_path / "differences.csv")
    assert header[2:] == [
        "prediction_a", "probability_a", "result_a", "prediction_b", "probability_b", "result_b",
    ]  # fmt: skip
    assert [(row[2], row[5]) for row in rows] == [
        *[("dog", "cat")] * 5, ("cat", "horse"), ("horse", "mule"), ("horse", "mule"),
    ]  # fmt: skip
    page = render_comparison(compared, []).replace("\N{NO-BREAK SPACE}", " ")
    assert "Only A is right (B is wrong): 1 image<" in page and "Only B is right (A is wrong): 5 images<" in page
    assert "The 3 most confident errors." in page and page.count("actual cat;") == 1 + 3
    assert "actual cat; A: dog (99 %), B: cat (99 %)" in page


def test_a_class_in_two_spellings_is_no_difference() -> None:
    names = ["caf\u00e9"] * 3
    composed = outputs(["caf\u00e9"] * 3, names, ("caf\u00e9", "bar"))
    decomposed = outputs(["cafe\u0301", "bar", "cafe\u0301"], names, ("bar", "cafe\u0301"), "other")
    assert comparison(composed, decomposed).differs.tolist() == [False, True, False]


def test_a_p_value_on_the_level_is_no_difference() -> None:
    test = PairedTest("a", "b", 1, 8, 0.05, 0.05, 1)
    assert test.verdict == "no clear difference"
