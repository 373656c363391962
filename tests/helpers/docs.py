"""Parse the documentation: its pages, their code blocks, commands, links and numbers."""

import os
import re
from pathlib import Path

from cifar_pipeline.utils.text import one_line
from helpers.source_tree import ROOT

# The pages in the root folder of an adopted project are its own.
IS_ADOPTED = (ROOT / ".adopted.yaml").exists()
PAGES = sorted([*(() if IS_ADOPTED else ROOT.glob("*.md")), *(ROOT / "docs").glob("*.md")])
# What both READMEs tell a reader with images to write in params.yaml and to type.
IMAGES_EXPERIMENT = "finetune"
IMAGES_COMMANDS = [
    "make", "python src/predict.py images/cats/01.jpg", "python src/evaluate.py --model models --data new/",
]  # fmt: skip
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
# Started by make, a make below it would print the directory that it enters.
SHELL_ENV = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
PROGRAMS = "make dvc docker python python3 git pip uv mlflow pre-commit source curl chmod eval"


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the language and the content of each code block."""
    return BLOCK.findall(text)


def prose(text: str) -> str:
    return BLOCK.sub("", text)


def spans(text: str) -> list[str]:
    """Return the text of each `code span` in the prose, on one line."""
    return [one_line(span) for span in re.findall(r"`([^`]+)`", prose(text))]


def commands(text: str) -> list[str]:
    """Return each command that a reader may type, without its comment."""
    typed = [
        re.sub(r"\s+# .*", "", command).strip()
        for language, block in blocks(text)
        if language == "console"
        for command in re.findall(r"^ *\$ (.*(?:\n(?! *\$ ).*[|)\\@-]$)*)", block, re.MULTILINE)
    ]
    # A span that ends in an ellipsis, or is only a program's name, is not a command to type.
    inline = [span for span in spans(text) if span.split()[0] in PROGRAMS.split()]
    return [*typed, *(span for span in inline if span == "make" or (" " in span and not span.endswith("...")))]


def headings(text: str) -> list[tuple[int, str]]:
    """Return the level and the text of each heading."""
    return [(len(level), title) for level, title in re.findall(r"^(#+) (.+)$", prose(text), re.MULTILINE)]


def anchors(text: str) -> set[str]:
    """Return the anchors that code hosts generate from the headings."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for _, title in headings(text)}


def links(text: str) -> list[str]:
    """Return the targets of all links and images."""
    return [*re.findall(r"\]\(([^)\s]+)\)", prose(text)), *re.findall(r'src="([^"]+)"', prose(text))]


def numbers(text: str) -> list[str]:
    """Return all numbers in the prose and in the links, sorted as text."""
    return sorted(re.findall(r"\d+(?:[.,]\d+)*", prose(text)))
