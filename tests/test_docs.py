"""What the documentation says is there: tests, files, headings, keys, messages, packages; both READMEs say the same."""

import ast
import re
from pathlib import Path

import pytest
from test_layout import MAY_KNOW

from cifar_pipeline.config.json_schema import dotted_keys
from cifar_pipeline.config.params import NON_PARAM_GROUPS
from cifar_pipeline.config.reference import read_groups
from helpers.docs import PAGES, ROOT, anchors, blocks, headings, links, name_of, numbers, read, spans
from helpers.source_tree import FILES

PROMISES = read(ROOT / "docs" / "guarantees.md")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PROMISES)
GROUPS = read_groups(ROOT / "conf")
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"

each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def test_every_test_that_is_named_exists():
    assert len(NAMED) > 20
    missing = [
        f"{file}::{name}"
        for file, name in NAMED
        if not (ROOT / file).is_file() or f"\ndef {name}(" not in (ROOT / file).read_text(encoding="utf-8")
    ]
    assert missing == []


def test_long_ones_are_called_long():
    for line in PROMISES.splitlines():
        for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", line):
            before = (ROOT / file).read_text(encoding="utf-8").partition(f"\ndef {name}(")[0]
            decorators = before.rpartition("\n\n")[2]
            assert ("@pytest.mark.long" in decorators) == ("(*long*)" in line), name


@each_page
def test_no_link_is_dead(page):
    for link in links(read(page)):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(read(target)), f"{target} has no heading #{anchor}"


@each_page
def test_every_key_and_option_is_in_conf(page):
    text = read(page)
    chosen = {name: group for name, group in GROUPS.items() if name not in NON_PARAM_GROUPS}
    known = set(dotted_keys(chosen)) | {f"data.source.{key}" for key in GROUPS["data"].nested["source"].keys}
    made_there = set(re.findall(r"conf/(\w+/\w+)\.yaml", text))
    said = [*spans(text), *(block for language, block in blocks(text) if language == "console")]
    for words in said:
        for key in re.findall(rf"(?<![\w./@-])((?:{'|'.join(chosen)})(?:\.\w+)+)\b(?![/(*])", words):
            file = key.endswith((".py", ".json", ".yaml", ".md", ".npy", ".onnx", ".pt2"))
            assert file or key in known, f"{page}: no file of conf/ has {key}"
        for group, options in re.findall(rf"(?<![\w./@-])({'|'.join(GROUPS)})(?:=|: )([a-z]\w*(?:,\w+)*)", words):
            for option in options.split(","):
                there = option in (*GROUPS[group].names, "null") or f"{group}/{option}" in made_there
                assert there, f"{page}: conf/{group}/ has no {option}"


def strings(path: Path) -> list[str]:
    """Every text of a file, as the program prints it, with `...` for what it puts in."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def test_every_message_that_is_quoted_is_one_of_the_programs():
    text = read(ROOT / "docs" / "troubleshooting.md")
    quoted = [" ".join(words.split()) for words in re.findall(r"^\*\*(.+?)\*\*", text, re.MULTILINE)]
    assert len(quoted) > 20
    printed = [text for file in FILES for text in strings(file)] + re.findall(r'echo "(.+?)"', read(ROOT / "Makefile"))
    for message in quoted:
        if message.startswith("ERROR: "):
            continue  # DVC's
        parts = [re.escape(part) for part in message.split("...") if part.strip(" .:")]
        pattern = re.compile(".*".join(parts), re.DOTALL)
        assert any(pattern.search(text) for text in printed), message


def test_the_packages_are_those_of_the_layout():
    rows = re.findall(r"^\| `(\w+)` \| .* \| .* \| (.+) \|$", read(ROOT / "docs" / "architecture.md"), re.MULTILINE)
    assert {package: set(re.findall(r"`(\w+)`", known)) for package, known in rows} == MAY_KNOW


def test_the_readme_is_read_in_a_few_minutes():
    assert len(read(ENGLISH).splitlines()) < 300


def without_comments(block: str) -> str:
    return re.sub(r" +# .*", "", block)


@pytest.mark.parametrize(
    "what",
    [
        lambda text: [level for level, _ in headings(text)],
        lambda text: sorted(spans(text)),
        lambda text: [(language, without_comments(block)) for language, block in blocks(text)],
        lambda text: sorted(link for link in links(text) if not link.startswith("README")),
        numbers,
        lambda text: [line.count("|") for line in text.splitlines() if line.startswith("|")],
    ],
    ids=["headings", "code", "blocks", "links", "numbers", "tables"],
)
def test_both_readmes_say_the_same(what):
    assert what(read(CHINESE)) == what(read(ENGLISH))
