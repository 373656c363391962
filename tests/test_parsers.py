"""YAML and JSON that expand to far more than their size are rejected at once."""

import json
from pathlib import Path

import pytest
import yaml

from cifar_pipeline.config.params import read_params
from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.safe_io import parse_json, parse_yaml
from helpers.config_project import Project

LAUGHS = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{level}: &a{level} [{', '.join(10 * [f'*a{level - 1}'])}]\n" for level in range(1, 9)
)
BOMBS = {
    "aliases of aliases": (LAUGHS, "its aliases expand to more than 10,000 values"),
    "merged aliases": (
        "a0: &a0 {x: 1}\n"
        + "".join(f"a{level}: &a{level} {{x: *a{level - 1}, y: *a{level - 1}}}\n" for level in range(1, 30)),
        "its aliases expand to more than",
    ),
    "a value that contains itself": ("a: &a {b: *a}", "the value `a` contains itself"),
    "a list in a list": ("a: " + "[" * 100_000 + "]" * 100_000, "it is nested deeper than 50 values"),
    "a mapping in a mapping": ("".join(f"{' ' * depth}a:\n" for depth in range(300)), "it is nested deeper than"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_yaml_that_grows_is_an_error_with_its_line(case: str) -> None:
    text, message = BOMBS[case]
    with pytest.raises(yaml.MarkedYAMLError, match=message) as raised:
        parse_yaml(text)
    assert raised.value.problem_mark is not None


@pytest.mark.parametrize("case", BOMBS)
def test_params_that_grow_are_refused_at_once(project: Project, case: str) -> None:
    text, message = BOMBS[case]
    project.write("params.yaml", "overrides:\n" + "".join(f"  {line}\n" for line in text.splitlines()))
    with pytest.raises(UserError, match=rf"^params\.yaml, line \d+, is not valid YAML: {message}"):
        read_params()


def test_plain_aliases_are_taken() -> None:
    assert parse_yaml("a: &a {x: [1, 2]}\nb: *a\nc: &n 3\nd: *n\n<<: {e: 1}") == {
        "a": {"x": [1, 2]}, "b": {"x": [1, 2]}, "c": 3, "d": 3, "e": 1,
    }  # fmt: skip
    assert len(parse_yaml("[" + "1, " * 20_000 + "]")) == 20_000


def test_json_that_is_nested_too_deep_is_an_error_of_its_format(tmp_path: Path) -> None:
    deep = "[" * 100_000
    with pytest.raises(ValueError, match="nested too deep"):
        parse_json(deep)
    assert parse_json(json.dumps({"a": [1]})) == {"a": [1]}
    (tmp_path / "dataset.json").write_text(deep)
    with pytest.raises(UserError, match=r"dataset\.json is corrupt"):
        Dataset.open(tmp_path)
