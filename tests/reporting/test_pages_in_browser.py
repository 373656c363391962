"""The pages in a real browser, if one is installed: phone and desktop width, light and dark."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sample_evaluation import make_evaluation
from test_comparison_figures import sweep
from test_model_comparison import comparison, evaluation, outputs

from cifar_pipeline.reporting.html_report import write_report
from cifar_pipeline.reporting.model_comparison import render_comparison
from cifar_pipeline.reporting.model_evaluation import render_evaluation
from cifar_pipeline.sweeps.summary import write
from helpers.headless_browser import Page, chromium, opened

PROGRAM = chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium or Chrome is installed to open the pages in")

# Elements that extend beyond the right edge, except in a scrollable container.
TOO_WIDE = """
[...document.querySelectorAll('body *')].filter(element => {
  const box = element.getBoundingClientRect();
  return box.width && box.right > innerWidth + 0.5 && !element.closest('.wide');
}).map(element => element.outerHTML.slice(0, 80))
"""
UNLOADED = "[...document.images].filter(image => !image.naturalWidth).map(image => image.alt)"
# Contrast ratio of text and background (WCAG).
CONTRAST = """
(() => {
  const luminance = color => {
    const [r, g, b] = color.match(/[\\d.]+/g).map(Number).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const style = getComputedStyle(document.body);
  const two = [luminance(style.color), luminance(style.backgroundColor)].sort((a, b) => b - a);
  return (two[0] + 0.05) / (two[1] + 0.05);
})()
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with opened(str(PROGRAM), tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("Seiten für alle")
    longest = "an_optimizer_with_an_uncommonly_long_name"
    results = {(optimizer, loss): 0.5 for optimizer in ("sgd", "adam", longest) for loss in ("mse", "focal")}
    write(sweep(("optimizer", "loss"), {**results, ("lion", "mse"): "FAILED"}), folder, "dvc exp run -S " + 30 * "long")
    return {
        "report": write_report(folder / "report.html", make_evaluation()),
        "many classes": write_report(folder / "many.html", make_evaluation(200, 50)),
        "comparison": folder / "compare.html",
        **models(folder),
    }


def models(folder: Path) -> dict[str, Path]:
    """Write the pages of a model, and of two models with long names; the images are also of unknown classes."""
    names = ["cat"] * 9 + ["dog"] * 6 + [30 * "unknown"] * 4
    first = outputs([*["dog", "cat", "horse"] * 5, *["mule"] * 4], names, address=f"runs:/{32 * 'a'}/best")
    second = outputs([*["cat"] * 8, *["mule", "dog"] * 4, *["mule"] * 3], names, address=20 * "long/", size=12)
    pages = {
        "model": render_evaluation(evaluation(first)),
        "two models": render_comparison(comparison(first, second), [("data", 30 * "folder/")]),
    }
    for name, page in pages.items():
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in pages}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", ["report", "many classes", "comparison", "model", "two models"])
def test_a_page_opens_without_errors_and_nothing_is_wider_than_the_screen(
    page: Page, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    page.open(pages[name], width, dark)
    assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth") == width
    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate("document.images.length") > 1 and page.evaluate(UNLOADED) == []
    assert page.evaluate(CONTRAST) > 7
    assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    assert page.problems == [] and page.fetched == []


def test_figures_have_a_white_background_on_light_and_dark_pages(page: Page, pages: dict[str, Path]) -> None:
    brightness = """(async () => {
      const figure = document.querySelector('#curves img'), canvas = document.createElement('canvas');
      await figure.decode();
      [canvas.width, canvas.height] = [figure.naturalWidth, figure.naturalHeight];
      const pen = canvas.getContext('2d');
      pen.drawImage(figure, 0, 0);
      const pixels = pen.getImageData(0, 0, canvas.width, canvas.height).data;
      let brightest = 0, darkest = 765;
      for (let at = 0; at < pixels.length; at += 4) if (pixels[at + 3] > 250) {
        const brightness = pixels[at] + pixels[at + 1] + pixels[at + 2];
        [brightest, darkest] = [Math.max(brightest, brightness), Math.min(darkest, brightness)];
      }
      return [darkest, brightest];
    })()"""
    for dark in (False, True):
        page.open(pages["report"], 1280, dark)
        darkest, brightest = page.evaluate(brightness)
        assert darkest < 150 and brightest == 765


def test_the_report_can_be_printed(page: Page, pages: dict[str, Path]) -> None:
    page.open(pages["report"], 1280)
    assert page.pdf().startswith(b"%PDF")


def test_errors_of_a_page_are_detected(page: Page, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text(
        "<script>nothing.there()</script><img src='http://127.0.0.1:9/a.png' alt='a'><p style='width: 2000px'>wide"
    )
    page.open(tmp_path / "bad.html", 360)
    assert any("nothing is not defined" in problem for problem in page.problems)
    assert page.fetched == ["http://127.0.0.1:9/a.png"]
    assert len(page.evaluate(TOO_WIDE)) == 1 and page.evaluate(UNLOADED) == ["a"]
    page.problems.clear()
    page.fetched.clear()
