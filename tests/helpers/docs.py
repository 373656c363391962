"""The documentation as tests read it: its pages, their blocks of code, commands, links and numbers."""

import re
from pathlib import Path

from helpers.source_tree import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
PROGRAMS = "make dvc docker python python3 git pip uv mlflow pre-commit source curl chmod eval"


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(text: str) -> list[tuple[str, str]]:
    """The language and the content of each block of code."""
    return BLOCK.findall(text)


def prose(text: str) -> str:
    return BLOCK.sub("", text)


def spans(text: str) -> list[str]:
    """What stands between `backticks` in the prose, on one line each."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(text))]


def commands(text: str) -> list[str]:
    """Each command that a reader may type, without its comment."""
    typed = [
        re.sub(r"\s+# .*", "", command).strip()
        for language, block in blocks(text)
        if language == "console"
        for command in re.findall(r"^ *\$ (.*(?:\n(?! *\$ ).*[|)\\@-]$)*)", block, re.MULTILINE)
    ]
    # One that ends in an ellipsis, or is a program's name alone, is spoken of and not typed.
    inline = [span for span in spans(text) if span.split()[0] in PROGRAMS.split()]
    return [*typed, *(span for span in inline if span == "make" or (" " in span and not span.endswith("...")))]


def headings(text: str) -> list[tuple[int, str]]:
    """The level and the words of each heading."""
    return [(len(level), words) for level, words in re.findall(r"^(#+) (.+)$", prose(text), re.MULTILINE)]


def anchors(text: str) -> set[str]:
    """What a link may name behind #, as code hosts make it out of headings."""
    return {re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-") for _, words in headings(text)}


def links(text: str) -> list[str]:
    """The targets of all links and images."""
    return [*re.findall(r"\]\(([^)\s]+)\)", prose(text)), *re.findall(r'src="([^"]+)"', prose(text))]


def numbers(text: str) -> list[str]:
    """Every number in the prose and in the links, in order of size."""
    return sorted(re.findall(r"\d+(?:[.,]\d+)*", prose(text)))
