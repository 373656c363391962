"""What only this project has, and no adopted one: two READMEs with the same content, a citation, published values."""

import re
import tomllib

import pytest
import yaml

from helpers.docs import (
    IMAGES_COMMANDS,
    IMAGES_EXPERIMENT,
    ROOT,
    blocks,
    commands,
    headings,
    links,
    numbers,
    read,
    spans,
)
from helpers.source_tree import PUBLISHED

ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"


def test_the_readme_is_short():
    assert len(read(ENGLISH).splitlines()) <= 220


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
def test_both_readmes_have_the_same_content(what):
    assert what(read(CHINESE)) == what(read(ENGLISH))


def test_the_readmes_tell_the_commands_for_images_that_a_test_runs():
    section = read(ENGLISH).partition("\n## Your own images")[2].partition("\n## ")[0]
    assert re.findall(r"`experiment: (\w+)` in `params.yaml`", section) == [IMAGES_EXPERIMENT]
    assert commands(section) == IMAGES_COMMANDS


def test_the_tests_compose_the_published_params():
    assert read(PUBLISHED / "params.yaml") == read(ROOT / "params.yaml"), "copy params.yaml to tests/published/"


def test_name_version_and_license_are_the_same_everywhere():
    project = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]
    citation = yaml.safe_load(read(ROOT / "CITATION.cff"))
    for key, name in (("title", "name"), ("version", "version"), ("license", "license"), ("abstract", "description")):
        assert citation[key] == project[name]
    assert citation["authors"][0]["name"] in read(ROOT / "LICENSE")
