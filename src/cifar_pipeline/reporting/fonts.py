"""Draw each text of a figure with installed fonts that have its characters, and number what no font has.

The figures' own font, DejaVu Sans, has Latin, Greek, Cyrillic and Arabic letters. Other characters, such as those of
Chinese class names, are drawn with whatever font of this machine has them. Where there is none, they are replaced by
numbers in brackets; a log record says which number is which text, and which package has a font.
"""

import functools
import logging
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import partial

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import Formatter, FuncFormatter

from cifar_pipeline.utils.text import escape_control, list_names

log = logging.getLogger(__name__)

# A font of matplotlib that has a box for every character.
PLACEHOLDER_FONT = "Last Resort"
# Packages of Debian and Ubuntu, by how the Unicode names of their characters begin.
CJK_PACKAGE, SYMBOL_PACKAGE, OTHER_PACKAGE = "fonts-noto-cjk", "fonts-symbola", "fonts-noto-core"
CJK_NAMES = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "FULLWIDTH", "HALFWIDTH", "IDEOGRAPHIC", "KANGXI")

_numbers: dict[str, int] = {}


def fit_fonts(figure: Figure) -> None:
    """Give each text of a figure fonts for all its characters, and number the characters that no font has."""
    all_axis = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    tick_labels = {label for axis in all_axis for label in axis.get_ticklabels()}
    needed = {text: missing for text in figure.findobj(Text) if (missing := _missing(text))}
    if not needed:
        return
    # It would warn about each fallback font that has no bold face.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    families, without_font = _fallback_fonts(frozenset().union(*needed.values()))
    for text in needed:
        text.set_fontfamily([*text.get_fontfamily(), *families])
    if not without_font:
        return
    before, numbered = len(_numbers), _numbering(without_font)
    for text in needed.keys() - tick_labels:
        text.set_text(numbered(text.get_text()))
    for axis in all_axis:
        if needed.keys() & set(axis.get_ticklabels()):
            # A formatter writes the labels of the ticks whenever the figure is drawn.
            axis.set_major_formatter(FuncFormatter(partial(_format_numbered, axis.get_major_formatter(), numbered)))
            axis.get_ticklabels()
    _log_numbers(label_legend()[before:], without_font)


def _format_numbered(formatter: Formatter, numbered: Callable[[str], str], value: float, position: int | None) -> str:
    return numbered(formatter(value, position))


def label_legend() -> list[tuple[int, str]]:
    """Return the numbers that stand for texts in the figures of this process, and those texts."""
    return [(number, text) for text, number in _numbers.items()]


def _missing(text: Text) -> frozenset[str]:
    """Return the characters of a text that its own font does not have."""
    characters = frozenset(text.get_text().replace("\n", ""))
    if not characters or max(characters) < "\x7f":
        return frozenset()
    return characters - _characters(font_manager.findfont(text.get_fontproperties()))


@functools.cache
def _characters(path: str) -> frozenset[str]:
    return frozenset(map(chr, font_manager.get_font(path).get_charmap()))


def installed_fonts() -> dict[str, str]:
    """Return the file of each scalable font by its name, in alphabetical order.

    Fonts that were installed after matplotlib had listed them are added to its list.
    """
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for path in sorted(set(font_manager.findSystemFonts()) - known):
        try:
            font_manager.fontManager.addfont(path)
        except Exception:  # FreeType raises all kinds of errors for bitmap fonts and damaged files
            log.debug(f"{path} is not a font that can be used.")
    entries = sorted(font_manager.fontManager.ttflist, key=lambda entry: (entry.name, entry.style != "normal"))
    return {entry.name: entry.fname for entry in reversed(entries) if not entry.name.startswith(PLACEHOLDER_FONT)}


@functools.cache
def _fallback_fonts(characters: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """Choose few fonts for the characters; return their names, and the characters that no font has."""
    families: list[str] = []
    coverage = {name: characters & _characters(path) for name, path in sorted(installed_fonts().items())}
    while coverage and (best := max(coverage, key=lambda name: len(coverage[name]))) and coverage[best]:
        families.append(best)
        found = coverage[best]
        characters -= found
        coverage = {name: covered - found for name, covered in coverage.items()}
    return families, characters


def _numbering(characters: frozenset[str]) -> Callable[[str], str]:
    """Return a function that replaces runs of these characters by numbers, the same for the same run."""
    runs = re.compile(f"[{re.escape(''.join(sorted(characters)))}]+")
    return partial(runs.sub, lambda match: f"[{_numbers.setdefault(match[0], len(_numbers) + 1)}]")


def _log_numbers(new: Sequence[tuple[int, str]], characters: frozenset[str]) -> None:
    if not new:
        return
    listed = list_names(f"[{number}] {escape_control(text)}" for number, text in new)
    log.warning(
        "No installed font has some characters of the figures, which show numbers instead: install one (Debian, "
        f"Ubuntu: `apt install {' '.join(_packages(characters))}`). The numbers: {listed}."
    )


def _packages(characters: frozenset[str]) -> list[str]:
    return sorted({_package(character) for character in characters})


def _package(character: str) -> str:
    if unicodedata.name(character, "").startswith(CJK_NAMES):
        return CJK_PACKAGE
    return SYMBOL_PACKAGE if unicodedata.category(character) in ("So", "Sk") else OTHER_PACKAGE
