"""A value that is written for a person or into a file is read back by every reader, of the same type.

The readers are PyYAML (YAML 1.1), OmegaConf (for Hydra) and DVC (ruamel.yaml, YAML 1.2).
"""

import math
import shlex

import yaml
from corruption import num_examples, run_examples
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import strategies as st
from omegaconf import OmegaConf
from ruamel.yaml import YAML

from cifar_pipeline.config.params import format_override, params_values, to_yaml_inline

# Text that some reader takes for null, a truth value, a number, a time, a date or syntax, and paths.
TEXTS = [
    "no", "on", "Off", "YES", "y", "null", "Null", "~", "true", "1_000", "0x10", "0b1", "0o17", "017", "12:30",
    "1:2:3.5", "1e-3", "1E5", "12e03", "1.", ".5", "+1", "-1_0.5", ".inf", "-.INF", ".nan", "nan", "2001-01-01",
    "=", "<<", "!x", "% a", "@a", "- a", "-", "a: b", "a:", "a #b", "#a", "a, b", "[x]", "{x}", "it's", 'a"b',
    "a\\", "a\\'b", "my flowers", "~/x", "C:\\data", "/data/花 草 (1)", "a=b", "a&b", "*a", "|", ">", "?", "? a",
    "", " a ", "a\nb", "\ta", "é", "val/accuracy", "${x}", "models:/cifar10@champion", "0.10", "1e400",
    "00:00:05:00", "patient(\\d+)", "\u2028", "\x85", "\ufeff", "---",
]  # fmt: skip
words = st.sampled_from(TEXTS) | st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)
numbers = st.integers() | st.floats() | st.sampled_from([1e-5, 1e22, 1e-3, 5e-324, math.inf, -math.inf])
scalars = st.none() | st.booleans() | numbers | words
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3))


def is_same(one, other):
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    if isinstance(one, dict):
        return isinstance(other, dict) and [*one] == [*other] and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(is_same, one, other))
    return type(one) is type(other) and one == other


def read_by_all(text):
    yield yaml.safe_load(text)
    yield OmegaConf.to_container(OmegaConf.create(text))
    yield YAML(typ="safe", pure=True).load(text)


def assert_read(value):
    written = to_yaml_inline(value)
    assert "\n" not in written
    for read in read_by_all(f"block: {written}\nflow: {{a: [{written}, 1]}}\n"):
        assert is_same(value, read["block"]) and is_same(value, read["flow"]["a"][0]), (value, written, read)


def test_text_that_looks_like_something_else_is_read_as_text():
    for text in TEXTS:
        assert_read(text)


@num_examples(50)
def test_a_written_value_is_read_as_the_same_by_every_reader(examples):
    @run_examples(examples, values)
    def check(value):
        assert_read(value)


@num_examples(100)
def test_text_on_a_printed_command_line_is_read_as_the_same_text(examples):
    for text in TEXTS:
        check_override(text)
    run_examples(examples, words)(check_override)


def check_override(text):
    (word,) = shlex.split(format_override("image_dir", text))
    assert OverridesParser.create().parse_override(word).value() == text


def test_the_lines_for_params_yaml_have_the_values_of_the_command_line(project):
    typed = {
        "optimizer.lr": "1e-05",
        "model.name": "no",
        "model.weights": "'a, b'",
        "trainer.max_time": "00:00:05:00",
        "data.group": "0x10",
        "data.val_fraction": "0.10",
        "optimizer.betas": "[0.9,1e-3]",
        "mlflow.tags": "{team: on}",
        "image_dir": "12:30",
        "augmentation": "[flip,mixup]",
        "seed": "1_000",
    }
    lines = params_values(typed)
    expected = {
        "overrides": {
            "optimizer": {"lr": 1e-05, "betas": [0.9, 1e-3]},
            "model": {"name": "no", "weights": "a, b"},
            "trainer": {"max_time": "00:00:05:00"},
            "data": {"group": "0x10", "val_fraction": 0.1},
            "mlflow": {"tags": {"team": "on"}},
        },
        "image_dir": "12:30",
        "augmentation": ["flip", "mixup"],
        "seed": 1000,
    }
    for read in read_by_all("".join(f"{key}: {value}\n" for key, value in lines.items())):
        assert read == expected
