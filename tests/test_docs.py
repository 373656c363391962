"""Check the documentation against the code: tests, files, headings, keys, messages, packages, traces."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from cifar_pipeline.config.json_schema import dotted_keys
from cifar_pipeline.config.params import NON_PARAM_GROUPS
from cifar_pipeline.config.reference import read_groups
from helpers import docs
from helpers.docs import PAGES, ROOT, anchors, blocks, links, read, spans
from helpers.source_tree import FILES, PACKAGE, SRC, imported_files, name_of, package_of

GUARANTEES = read(ROOT / "docs" / "guarantees.md")
CITED_TESTS = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", GUARANTEES)
GROUPS = read_groups(ROOT / "conf")

each_page = pytest.mark.parametrize("page", PAGES, ids=docs.name_of)


def test_every_cited_test_exists():
    assert len(CITED_TESTS) > 20
    missing = [
        f"{file}::{name}"
        for file, name in CITED_TESTS
        if not (ROOT / file).is_file() or f"\ndef {name}(" not in (ROOT / file).read_text(encoding="utf-8")
    ]
    assert missing == []


def test_long_tests_are_marked_long():
    for line in GUARANTEES.splitlines():
        guarantee = line.partition(" | ")[0]
        for file, name, mark in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`( \(\*long\*\))?", line):
            before = (ROOT / file).read_text(encoding="utf-8").partition(f"\ndef {name}(")[0]
            decorators = before.rpartition("\n\n")[2]
            assert ("@pytest.mark.long" in decorators) == ("(*long*)" in guarantee or bool(mark)), name


@each_page
def test_no_link_is_dead(page):
    for link in links(read(page)):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(read(target)), f"{target} has no heading #{anchor}"


def test_the_overview_lists_every_page():
    overview = ROOT / "docs" / "README.md"
    listed = {(overview.parent / link.partition("#")[0]).resolve() for link in links(read(overview))}
    assert {*(ROOT / "docs").glob("*.md")} - {overview} <= listed


@each_page
def test_every_key_and_option_is_in_conf(page):
    if page.name == "CHANGELOG.md":
        return  # it keeps the names of the past
    text = read(page)
    selectable = {name: group for name, group in GROUPS.items() if name not in NON_PARAM_GROUPS}
    known = set(dotted_keys(selectable)) | {f"data.source.{key}" for key in GROUPS["data"].nested["source"].keys}
    created_options = set(re.findall(r"conf/(\w+/\w+)\.yaml", text))
    texts = [*spans(text), *(block for language, block in blocks(text) if language == "console")]
    for words in texts:
        for key in re.findall(rf"(?<![\w./@-])((?:{'|'.join(selectable)})(?:\.\w+)+)\b(?![/(*])", words):
            file = key.endswith((".py", ".json", ".yaml", ".md", ".npy", ".onnx", ".pt2", ".db"))
            assert file or key in known or key.startswith("mlflow.tags.") or key.endswith("._target_"), (
                f"{page}: no file of conf/ has {key}"
            )
        for group, options in re.findall(rf"(?<![\w./@-])({'|'.join(GROUPS)})(?:=|: )([a-z]\w*(?:,\w+)*)", words):
            for option in options.split(","):
                exists = option in (*GROUPS[group].names, "null") or f"{group}/{option}" in created_options
                assert exists, f"{page}: conf/{group}/ has no {option}"


def strings(path: Path) -> list[str]:
    """Return every string literal of a file, with `...` for the values of f-strings."""
    literals = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
            literals.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            literals.append(node.value)
    return literals


def test_every_quoted_message_is_in_the_code():
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


ARCHITECTURE = read(ROOT / "docs" / "architecture.md")


def test_the_table_of_packages_lists_their_modules_and_imports():
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.+) \| (.+) \|$", ARCHITECTURE, re.MULTILINE)
    table = {package: tuple(set(re.findall(r"`([\w/]+)`", cell)) for cell in cells) for package, *cells in rows}
    modules, imports = {}, {}
    for path in FILES:
        package = package_of(path)
        if path.stat().st_size and package not in ("", "__init__"):
            modules.setdefault(package, set()).add(name_of(path).removeprefix(f"{package}/").removesuffix(".py"))
            imported = {package_of(file) for file in imported_files(path)} - {package, "__init__"}
            imports.setdefault(package, set()).update(imported)
    assert table == {package: (modules[package], imports[package]) for package in modules}
    order = list(table)
    for package, (_, imported) in table.items():
        assert all(order.index(other) < order.index(package) for other in imported), package


@pytest.mark.parametrize(
    ("heading", "most"),
    [("One batch, from disk to optimizer step", 9), ("`optimizer.lr`, from its file to its use", 7)],
)
def test_the_traces_follow_the_imports(heading, most):
    section = ARCHITECTURE.partition(f"### {heading}\n")[2].partition("\n### ")[0]
    trace = re.findall(r"^\d+\. `([\w/.]+)`", section, re.MULTILINE)
    ours = [ROOT / file for file in trace if file.startswith("src/")]
    assert trace and 2 < len(ours) == len(set(ours)) <= most
    before = None
    for file, following in zip(trace, [*trace[1:], None], strict=True):
        assert (ROOT / file).is_file(), f"{file} does not exist"
        if file.startswith("conf/"):
            target = yaml.safe_load((ROOT / file).read_text())["_target_"]
            named = SRC.joinpath(*target.split(".")[:-1]).with_suffix(".py")
            if named.is_file():
                assert following == named.relative_to(ROOT).as_posix(), f"{file} names {named}, not {following}"
                before = named
            continue
        path = ROOT / file
        linked = before in (None, path) or path in imported_files(before) or before in imported_files(path)
        assert linked, f"{file} neither imports {name_of(before)} nor is imported by it"
        before = path


def test_the_paths_in_the_architecture_exist():
    for name in spans(ARCHITECTURE):
        if re.fullmatch(r"\w+/[\w/]+\.(py|html)", name) and not name.startswith("tests/"):
            assert any((root / name).is_file() for root in (ROOT, SRC / PACKAGE)), f"{name} does not exist"
