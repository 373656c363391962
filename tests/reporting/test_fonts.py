"""Characters that the figures' font lacks are drawn with an installed font, or numbered with a legend in text."""

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text
from sample_evaluation import HISTORY, make_evaluation
from test_comparison_figures import sweep

from cifar_pipeline.reporting import fonts
from cifar_pipeline.reporting.html import figure_image_uri, figure_uri
from cifar_pipeline.reporting.html_report import render_report
from cifar_pipeline.reporting.image_figures import contact_sheet, error_figure, first_layer_figure
from cifar_pipeline.reporting.metrics import Predictions
from cifar_pipeline.reporting.plots import confusion_figure, learning_curves, range_test_figure
from cifar_pipeline.reporting.style import new_figure, save
from cifar_pipeline.reporting.sweep_plots import curves, dots, heat_map

NAMES, TITLE = ["猫", "狗 2", "ship"], "模型 on 花卉"
LABELS, PREDICTIONS = np.array([0, 1, 2]), np.array([1, 2, 0])
IMAGES = np.zeros((3, 4, 4, 3), np.uint8)
CHARACTERS = "猫狗模型花卉甲乙"
RESULTS = {(optimizer, loss): 0.5 for optimizer in ("甲", "adam") for loss in ("mse", "乙")}
FIGURES: dict[str, Callable[[], Figure]] = {
    "samples": lambda: contact_sheet(IMAGES, LABELS, NAMES, TITLE),
    "confusion": lambda: confusion_figure(LABELS, PREDICTIONS, NAMES, TITLE),
    "errors": lambda: error_figure(IMAGES, LABELS, PREDICTIONS, np.ones(3), NAMES, 3, TITLE),
    "filters": lambda: first_layer_figure(np.ones((2, 3, 2, 2)), TITLE),
    "learning curves": lambda: learning_curves(HISTORY, TITLE, "val/accuracy", "max"),
    "range test": lambda: range_test_figure([0.1, 1.0], [2.0, 1.0], [], None, TITLE, log_axis=True),
    "trials": lambda: dots(sweep(("optimizer", "loss"), RESULTS)),
    "grid": lambda: heat_map(sweep(("optimizer", "loss"), RESULTS)),
    "trials by epoch": lambda: curves(sweep(("optimizer", "loss"), RESULTS)),
}
WRITERS: dict[str, Callable[[Figure, Path], object]] = {
    "png": lambda figure, folder: save(figure, folder / "figure.png", dpi=50),
    "svg in a page": lambda figure, _: figure_uri(figure),
    "png in a page": lambda figure, _: figure_image_uri(figure, dpi=50),
}


@pytest.fixture(autouse=True)
def no_raw_warnings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start without numbers, and fail on matplotlib's warning about missing characters."""
    monkeypatch.setattr(fonts, "_numbers", {})
    fonts._fallback_fonts.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    fonts._fallback_fonts.cache_clear()


def make_font(path: Path, name: str, characters: str) -> Path:
    """Write a font that draws each of these characters as a square."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for point in ((100, 800), (900, 800), (900, 0)):
        pen.lineTo(point)
    pen.closePath()
    square, glyphs = pen.glyph(), [f"u{ord(character):04X}" for character in characters]
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", *glyphs])
    builder.setupCharacterMap({ord(character): glyph for character, glyph in zip(characters, glyphs, strict=True)})
    builder.setupGlyf(dict.fromkeys([".notdef", *glyphs], square))
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *glyphs], (1000, 100)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture
def machine_fonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that installs a font with these characters beside matplotlib's own fonts."""
    manager = font_manager.fontManager
    own = [entry for entry in manager.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(manager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])

    def install(characters: str) -> None:
        # matplotlib keeps its list on disk, so a new font is in no list yet.
        path = make_font(tmp_path / f"{len(characters)}.ttf", f"Made {len(characters)}", characters)
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(path)])

    return install


def all_text(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_with_an_installed_font(
    name: str, tmp_path: Path, machine_fonts: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    machine_fonts(CHARACTERS)
    figure = FIGURES[name]()
    before = all_text(figure)
    save(figure, tmp_path / "figure.png", dpi=50)
    assert set(before) & set(CHARACTERS) == set(all_text(figure)) & set(CHARACTERS) != set()
    assert not caplog.records and not fonts.label_legend()


@pytest.mark.parametrize("name", FIGURES)
def test_without_a_font_every_figure_shows_numbers(
    name: str, tmp_path: Path, machine_fonts: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    figure = FIGURES[name]()
    save(figure, tmp_path / "figure.png", dpi=50)
    assert not set(all_text(figure)) & set(CHARACTERS)
    (record,) = caplog.records
    for number, text in fonts.label_legend():
        assert f"[{number}]" in all_text(figure) and f"[{number}] {text}" in record.message
    assert "`apt install fonts-noto-cjk`" in record.message and record.levelno == logging.WARNING


@pytest.mark.parametrize("writer", WRITERS)
def test_each_way_to_write_a_figure_knows_the_fonts(
    writer: str, tmp_path: Path, machine_fonts: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    machine_fonts("猫")
    figure = FIGURES["confusion"]()
    WRITERS[writer](figure, tmp_path)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels[0] == "猫" and labels[1].startswith("[") and labels[1].endswith("] 2") and labels[2] == "ship"
    assert len(caplog.records) == 1


def test_the_glyph_of_the_installed_font_is_drawn(tmp_path: Path, machine_fonts: Callable[[str], None]) -> None:
    machine_fonts("猫")
    figure = new_figure(3, 1, "猫")
    save(figure, tmp_path / "figure.png")
    figure.canvas.draw()
    box = figure._suptitle.get_window_extent()  # type: ignore[attr-defined]
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., 0]  # type: ignore[attr-defined]
    rows = slice(int(figure.bbox.height - box.y1), int(figure.bbox.height - box.y0))
    # A square, and not the outline of a box.
    assert (pixels[rows, int(box.x0) : int(box.x1)] < 128).mean() > 0.6


def test_numbers_are_the_same_in_all_figures_and_the_page_has_the_legend(
    machine_fonts: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    names = [chr(0x4E00 + number) for number in range(12)]
    random = np.random.default_rng(0).integers(0, 12, (2, 200))
    evaluation = make_evaluation(200, 30)
    names += evaluation.predictions.classes[12:]
    page = render_report(make_evaluation(200, 30, predictions=Predictions(names, *random, np.ones(200))))
    legend = dict(fonts.label_legend())
    assert sorted(legend.values()) == names[:12]
    assert all(f"<li>[{number}] {text}</li>" in page for number, text in legend.items())
    (record,) = caplog.records
    assert "[10] " in record.message and "[11] " not in record.message and "and 2 more" in record.message
    save_again = confusion_figure(*random, names, "again")
    figure_uri(save_again)
    assert dict(fonts.label_legend()) == legend and len(caplog.records) == 1


@pytest.mark.parametrize(
    ("character", "package"),
    [("猫", "fonts-noto-cjk"), ("か", "fonts-noto-cjk"), ("한", "fonts-noto-cjk"), ("ก", "fonts-noto-core"),
     ("\N{CAT FACE WITH TEARS OF JOY}", "fonts-symbola")],
)  # fmt: skip
def test_the_package_depends_on_the_script(
    character: str, package: str, machine_fonts: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    figure_image_uri(new_figure(3, 1, character), dpi=20)
    # DejaVu has some of the symbols.
    assert all(f"`apt install {package}`" in record.message for record in caplog.records)
    assert caplog.records or fonts._characters(font_manager.findfont("DejaVu Sans")) >= {character}


@pytest.mark.parametrize("width", [6.0, 13.0])
def test_a_long_chinese_title_stays_on_the_figure(width: float, machine_fonts: Callable[[str], None]) -> None:
    machine_fonts("模型花卉")
    figure = new_figure(width, 4, "模型花卉" * 30)
    fonts.fit_fonts(figure)
    figure.draw_without_rendering()
    assert figure._suptitle.get_window_extent().x1 <= figure.bbox.x1  # type: ignore[attr-defined]
