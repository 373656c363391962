"""The report page: it says what was measured, stands alone, and is readable without its images."""

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from sample_evaluation import BINS, FACTS, HISTORY, evaluation

from cifar_pipeline.reporting.html_report import (
    Evaluation,
    confusion_table,
    describe_curve,
    figure_uri,
    image_uri,
    provenance,
    report,
    write_report,
)
from cifar_pipeline.reporting.image_figures import AttributionMaps
from cifar_pipeline.reporting.metrics import Predictions, wilson_interval
from cifar_pipeline.reporting.plots import learning_curve


class Read(HTMLParser):
    """A page as tags, and as the words that are left when images are off."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self.feed(page.replace("&nbsp;", " "))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "img":
            self.said.append(str(dict(attrs)["alt"]))

    def handle_data(self, data: str) -> None:
        self.said.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.said).replace("\N{NO-BREAK SPACE}", " ").split())


def read(made: Evaluation) -> Read:
    return Read(report(made, BINS, 5))


@pytest.fixture(scope="module")
def made() -> Evaluation:
    return evaluation()


@pytest.fixture(scope="module")
def page(made: Evaluation) -> str:
    return report(made, BINS, 5)


def test_the_report_says_the_numbers_of_metrics_json(made: Evaluation, page: str) -> None:
    words, test = Read(page).words, made.metrics["test"]
    for key in ("accuracy", "top3_accuracy", "calibration_error"):
        assert f"{100 * test[key]:.2f} %" in words, key
    low, high = wilson_interval(int(made.predict.correct.sum()), 300)
    assert f"95 % interval {100 * low:.2f} % to {100 * high:.2f} %" in words
    for name, row in made.metrics["per_class"].items():
        said = f"{name} {100 * row['recall']:.1f} % {100 * row['precision']:.1f} % {row['f1']:.3f} {row['support']}"
        assert said in words


def test_the_report_says_the_recipe_and_where_everything_comes_from(made: Evaluation, page: str) -> None:
    words = Read(page).words
    for said in (
        "experiment tutorial", "seed 7", "optimizer adam: lr 0.002, betas 0.9, 0.99, full_batch false",
        "trainer max_epochs 3", "source a random generator", "train 900, val 100, test 300", "commit c0ffee1",
        "the last, of epoch 3", "in 1 min 07 s on cpu, 1 thread", "adam-cross_entropy-7 (a1b2c3)", "0123456789abcdef",
    ):  # fmt: skip
        assert said in words, said
    assert FACTS["recipe"]["trainer"]["gradient_clip_val"] is None and "gradient_clip_val" not in words  # type: ignore[index]
    best = dict(provenance(made.run, made.facts, made.metrics | {"checkpoint": "best"}))
    assert best["weights"] == "those of epoch 2 of 3, the best on the validation part"


def test_the_confusion_matrix_is_a_table_of_the_answers(made: Evaluation, page: str) -> None:
    rows = " ".join(
        f"{name} " + " ".join(f"{100 * count / sum(counts):.0f}" for count in counts)
        for name, counts in zip(made.predict.classes, made.predict.confusion_matrix(), strict=True)
    )
    assert rows in Read(page).words


def test_a_few_images_of_many_are_not_none() -> None:
    labels, predictions = np.array([0] * 300 + [1] * 4 + [2]), np.array([0] * 299 + [1] + [1, 1, 0, 0] + [2])
    found = confusion_table(Predictions(["cat", "dog", "ship"], labels, predictions, np.ones(305)), "drawn")
    cells = {name: [cell.text for cell in row] for name, row in found.rows}
    assert cells == {"cat": ["100", "<1", ""], "dog": ["50", "50", ""], "ship": ["", "", "100"]}
    assert [words.replace("\N{NO-BREAK SPACE}", " ") for words in found.most] == [
        "dog for cat (50 %: 2 of 4)", "cat for dog (0 %: 1 of 300)"
    ]  # fmt: skip


def test_many_classes_make_a_image() -> None:
    made = evaluation(images=200, classes=21)
    found = confusion_table(made.predict, made.caption)
    assert not found.rows and found.source.startswith("data:image/png;") and len(found.most) == 5


def test_the_report_loads_nothing_from_elsewhere(page: str) -> None:
    tags = Read(page).tags
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


def test_without_its_images_the_report_says_what_they_show(made: Evaluation, page: str) -> None:
    found = Read(page)
    pictures = [attributes["alt"] for tag, attributes in found.tags if tag == "img"]
    assert len(pictures) == 2 + 1 + 5 + 2 * 4 + 6 and all(pictures)
    assert (
        "Accuracy over epochs 1 to 3: training from 20.0 % to 60.0 %; validation from 25.0 % to 40.0 %; the best "
        "validation accuracy is 45.0 %, in epoch 2." in pictures
    )
    assert "Loss over epochs 1 to 3: training from 2.000 to 1.000; validation from 1.900 to 1.600." in pictures
    confidence, right = made.predict.confidence, made.predict.correct
    sure = confidence >= 14 / 15
    said = f"of {sure.sum()} answers given with 93 to 100 %, {100 * right[sure].mean():.0f} % are right"
    assert any(said in str(words) for words in pictures)


def test_what_comes_from_outside_is_text() -> None:
    made = evaluation(run={"id": "<img src=x onerror=alert(1)>", "name": "<script>alert(1)</script>"})
    page = report(made, BINS, 5)
    assert "<script" not in page and "<img src=x" not in page and "&lt;script&gt;" in page


def test_the_same_evaluation_gives_the_same_bytes(page: str, tmp_path: Path) -> None:
    assert write_report(tmp_path / "report.html", evaluation(), BINS, 5).read_text(encoding="utf-8") == page


@pytest.mark.parametrize(("side", "kind"), [(32, "png"), (160, "png"), (161, "jpeg"), (400, "jpeg")])
def test_large_images_are_brought_to_the_size_that_is_shown(side: int, kind: str) -> None:
    source = image_uri(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))
    assert source.startswith(f"data:image/{kind};") and len(source) < 120_000


def test_a_report_with_nothing_to_show_says_why() -> None:
    nothing = np.zeros(0, np.int64)
    made = evaluation(filters=None, attributions=AttributionMaps(nothing, None), facts={"fingerprint": "0"})
    perfect = dataclasses.replace(made.predict, predictions=made.predict.labels)
    dataset = made.metrics["dataset"] | {"fallback": True, "title": "digits"}
    words = read(dataclasses.replace(made, answers=perfect, metrics=made.metrics | {"dataset": dataset})).words
    assert "No mistakes: all 300 images are recognised." in words
    assert "No image is taken for another class than its own." in words
    assert "No image was asked for (evaluation.num_attributions)." in words
    assert "The network's first layer is no convolution" in words
    assert "The training left no word about its recipe" in words
    assert "There is no published result to compare with" in words
    # That it is the fallback is never in doubt.
    assert "This is the fallback data set, digits: no source of the real data answered. make cifar10" in words
    unseen = AttributionMaps(np.arange(2), None)
    assert unseen.why_none == "No gradient comes from this network's answers to the pixels."


def test_one_epoch_without_a_validation_part_is_described_and_drawn() -> None:
    history = HISTORY.iloc[:1].drop(columns=["val/loss", "val/accuracy"])
    assert describe_curve(history, "accuracy") == "Accuracy in epoch 1: training from 20.0 % to 20.0 %."
    assert figure_uri(learning_curve(history, "accuracy")).startswith("data:image/svg+xml;")
