"""The report page contains the metrics, loads nothing, and is readable without its images."""

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from sample_evaluation import HISTORY, METADATA, make_evaluation

from cifar_pipeline.reporting.evaluation import Evaluation
from cifar_pipeline.reporting.html import figure_uri
from cifar_pipeline.reporting.html_report import (
    confusion_table,
    image_uri,
    provenance_rows,
    render_report,
    write_report,
)
from cifar_pipeline.reporting.image_figures import AttributionMaps
from cifar_pipeline.reporting.metrics import Predictions, wilson_interval
from cifar_pipeline.reporting.plots import learning_curve, panels


class ParsedPage(HTMLParser):
    """Parse a page into its tags, and its text with the images' alternative texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page.replace("&nbsp;", " "))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "img":
            self.texts.append(str(dict(attrs)["alt"]))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).replace("\N{NO-BREAK SPACE}", " ").split())


def parse(evaluation: Evaluation) -> ParsedPage:
    return ParsedPage(render_report(evaluation))


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return make_evaluation()


@pytest.fixture(scope="module")
def page(evaluation: Evaluation) -> str:
    return render_report(evaluation)


def test_the_report_has_the_numbers_of_metrics_json(evaluation: Evaluation, page: str) -> None:
    text, test = ParsedPage(page).text, evaluation.metrics["test"]
    for key in ("accuracy", "top3_accuracy", "calibration_error"):
        assert f"{100 * test[key]:.2f} %" in text, key
    low, high = wilson_interval(int(evaluation.predictions.correct.sum()), 300)
    assert f"95 % interval {100 * low:.2f} % to {100 * high:.2f} %" in text
    for name, row in evaluation.per_class.items():
        cells = f"{name} {100 * row['recall']:.1f} % {100 * row['precision']:.1f} % {row['f1']:.3f} {row['support']}"
        assert cells in text


def test_the_report_has_the_recipe_and_the_provenance(evaluation: Evaluation, page: str) -> None:
    text = ParsedPage(page).text
    for expected in (
        "experiment tutorial", "seed 7", "optimizer adam: lr 0.002, betas 0.9, 0.99, full_batch false",
        "trainer max_epochs 3", "source a random generator", "train 900, val 100, test 300", "commit c0ffee1",
        "last (epoch 3)", "1 min 07 s on cpu, 1 thread", "adam-cross_entropy-7 (a1b2c3)", "0123456789abcdef",
    ):  # fmt: skip
        assert expected in text, expected
    assert METADATA["recipe"]["trainer"]["gradient_clip_val"] is None and "gradient_clip_val" not in text  # type: ignore[index]
    best = dict(provenance_rows(dataclasses.replace(evaluation, checkpoint="best")))
    assert best["weights"] == "best validation accuracy (epoch 2 of 3)"
    assert "stopped early" not in best


def test_the_report_says_by_what_the_weights_were_chosen_and_why_the_training_stopped() -> None:
    recipe = METADATA["recipe"] | {"monitor": "val/f1_macro", "mode": "max"}  # type: ignore[operator]
    stopped = "epoch 3 of 9: val/f1_macro has not improved for 1 epochs"
    plain = make_evaluation()
    test = plain.metrics["test"] | {"f1_macro": 0.8125, "top5_accuracy": 0.987}
    evaluation = make_evaluation(
        metadata=METADATA | {"recipe": recipe, "stopped": stopped},
        metrics={**plain.metrics, "test": test},
        checkpoint="best",
        history=HISTORY.assign(**{"val/f1_macro": [0.3, 0.5, 0.4], "val/top5_accuracy": [0.8, 0.9, 0.95]}),
    )
    text = parse(evaluation).text
    for expected in (
        "monitor val/f1_macro", "mode max", f"stopped early {stopped}", "best validation F1 macro (epoch 2 of 3)",
        "0.8125 F1 macro", "98.70 % top5 accuracy", "Validation F1 macro by epoch", "Other metrics by epoch",
    ):  # fmt: skip
        assert expected in text, expected


def test_the_confusion_matrix_is_a_table_of_percentages(evaluation: Evaluation, page: str) -> None:
    rows = " ".join(
        f"{name} " + " ".join(f"{100 * count / sum(counts):.0f}" for count in counts)
        for name, counts in zip(evaluation.predictions.classes, evaluation.predictions.confusion_matrix(), strict=True)
    )
    assert rows in ParsedPage(page).text


def test_a_few_images_of_many_are_not_shown_as_none() -> None:
    labels, predictions = np.array([0] * 300 + [1] * 4 + [2]), np.array([0] * 299 + [1] + [1, 1, 0, 0] + [2])
    named = Predictions(["cat", "dog", "ship"], labels, predictions, np.ones(305))
    table = confusion_table(make_evaluation(predictions=named))
    cells = {name: [cell.text for cell in row] for name, row in table.rows}
    assert cells == {"cat": ["100", "<1", ""], "dog": ["50", "50", ""], "ship": ["", "", "100"]}
    assert [text.replace("\N{NO-BREAK SPACE}", " ") for text in table.top_errors] == [
        "dog as cat (50 %: 2 of 4)", "cat as dog (0 %: 1 of 300)"
    ]  # fmt: skip


def test_many_classes_make_an_image() -> None:
    evaluation = make_evaluation(images=200, classes=21)
    table = confusion_table(evaluation)
    assert not table.rows and table.source.startswith("data:image/png;") and len(table.top_errors) == 5


def test_the_report_loads_nothing_from_elsewhere(page: str) -> None:
    tags = ParsedPage(page).tags
    assert not [tag for tag, _ in tags if tag in ("script", "iframe", "object", "embed")]
    for _, attributes in tags:
        for key in ("src", "href", "srcset", "data"):
            assert (attributes.get(key) or "#").startswith(("data:", "#")), attributes
    assert not re.search(r"url\(|@import", page)
    assert ("Content-Security-Policy", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in [
        (attributes.get("http-equiv"), attributes.get("content")) for _, attributes in tags
    ]
    anchors = {attributes["href"] for tag, attributes in tags if tag == "a"}
    assert anchors == {f"#{attributes['id']}" for tag, attributes in tags if tag == "section"}


def test_every_image_has_an_alternative_text(page: str) -> None:
    alts = [attributes["alt"] for tag, attributes in ParsedPage(page).tags if tag == "img"]
    assert len(alts) == 2 + 1 + 5 + 2 * 4 + 6 and all(alts)
    assert {"Loss by epoch", "Accuracy by epoch", "Reliability diagram: accuracy by confidence"} <= set(alts)


def test_names_from_outside_are_escaped() -> None:
    evaluation = make_evaluation(run={"id": "<img src=x onerror=alert(1)>", "name": "<script>alert(1)</script>"})
    page = render_report(evaluation)
    assert "<script" not in page and "<img src=x" not in page and "&lt;script&gt;" in page


def test_the_same_evaluation_gives_the_same_bytes(page: str, tmp_path: Path) -> None:
    assert write_report(tmp_path / "report.html", make_evaluation()).read_text(encoding="utf-8") == page


@pytest.mark.parametrize(("side", "image_format"), [(32, "png"), (96, "png"), (97, "jpeg"), (400, "jpeg")])
def test_large_images_are_reduced_to_the_size_shown(side: int, image_format: str) -> None:
    source = image_uri(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))
    assert source.startswith(f"data:image/{image_format};") and len(source) < 40_000


def test_a_report_with_nothing_to_show_gives_reasons() -> None:
    nothing = np.zeros(0, np.int64)
    evaluation = make_evaluation(
        filters=None, attributions=AttributionMaps(nothing, None), metadata={"fingerprint": "0", "parameters": 62006}
    )
    perfect = dataclasses.replace(evaluation.predictions, predictions=evaluation.predictions.labels)
    dataset = dict(evaluation.dataset) | {"fallback": True, "title": "digits"}
    text = parse(dataclasses.replace(evaluation, predictions=perfect, dataset=dataset)).text
    assert "No errors: all 300 images are classified correctly." in text
    assert "No image is misclassified." in text
    assert "No attribution maps were requested (evaluation.num_attributions is 0)." in text
    assert "No filters: the first layer is not a convolution." in text
    assert "The model's metadata has no recipe." in text
    assert "This is the fallback data set, digits: no source of the real data could be reached. make cifar10" in text
    without_gradient = AttributionMaps(np.arange(2), None)
    assert without_gradient.unavailable_reason == "This network has no gradient with respect to its input pixels."


@pytest.mark.parametrize(
    ("shown", "errors", "expected"),
    [
        (5, 1, "The only incorrect prediction."),
        (5, 2, "The 2 incorrect predictions, the most confident first."),
        (1, 9, "The incorrect prediction with the highest confidence, out of 9."),
        (5, 9, "The 5 incorrect predictions with the highest confidence, out of 9."),
    ],
)
def test_the_errors_shown_are_counted(evaluation: Evaluation, shown: int, errors: int, expected: str) -> None:
    labels = evaluation.predictions.labels
    predicted = np.where(np.arange(len(labels)) < errors, (labels + 1) % 4, labels)
    predictions = dataclasses.replace(evaluation.predictions, predictions=predicted)
    options = dataclasses.replace(evaluation.options, num_error_images=shown)
    assert expected in parse(dataclasses.replace(evaluation, predictions=predictions, options=options)).text


def test_the_top3_accuracy_of_three_classes_is_left_out(page: str) -> None:
    assert "top-3 accuracy" in page and "top-3 accuracy" not in parse(make_evaluation(classes=3)).text


def test_one_epoch_without_validation_is_drawn() -> None:
    history = HISTORY.iloc[:1].drop(columns=["val/loss", "val/accuracy"])
    _, accuracy = panels(history, "val/accuracy")
    assert figure_uri(learning_curve(history, accuracy, "val/accuracy", "max")).startswith("data:image/svg+xml;")


def test_a_thousand_classes_make_a_small_report_of_the_most_confused_ones() -> None:
    evaluation = make_evaluation(images=3000, classes=1000, size=32)
    page = render_report(evaluation)
    assert len(page) < 3_000_000
    text, predictions = ParsedPage(page).text, evaluation.predictions
    pairs = predictions.confused_pairs(15)
    assert len(pairs) == 15
    for pair in pairs:
        errors = (predictions.labels == pair.actual) & (predictions.predictions == pair.predicted)
        actual, predicted = (f"class {index}" for index in (pair.actual, pair.predicted))
        assert f"{actual} {predicted} {100 * pair.share:.0f} % {errors.sum()} of {pair.images}" in text
    per_class = evaluation.per_class
    names = re.findall(r'<th scope="row">(class \d+)</th><td class="right bar"', page)
    scores = [per_class[name]["f1"] for name in names]
    assert len(names) == 40 and max(scores[:20]) <= min(scores[20:]) and scores[20] == max(scores)
    width, height = evaluation.confusion_figure().get_size_inches()
    assert width < 14 and height < 14


def test_without_errors_many_classes_have_no_matrix() -> None:
    evaluation = make_evaluation(images=200, classes=50)
    perfect = dataclasses.replace(evaluation.predictions, predictions=evaluation.predictions.labels)
    correct = dataclasses.replace(evaluation, predictions=perfect)
    assert "No image is misclassified." in parse(correct).text
    assert "No errors: all 200 images" in correct.confusion_figure().axes[0].texts[0].get_text()
