"""A value that Hydra, DVC and YAML read differently is refused with the form that works, ready to paste."""

import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from cifar_pipeline.config.compose import compose_config
from cifar_pipeline.config.params import read_params
from cifar_pipeline.config.schema import validate
from cifar_pipeline.config.validation import format_error
from cifar_pipeline.utils.errors import UserError
from configure import configure
from helpers.config_project import Project
from helpers.source_tree import PUBLISHED

PATHS = [
    "my flowers #2", "a=b", "a(b", "a(b)", "it's", "{x}", "花", "/data/花 草 (1)", 'a"b', "a&b", "a;b", "a!b", "a`b",
    "é", "a<b>", "patient(\\d+)",
]  # fmt: skip


def pasted(sentence: str) -> str:
    """Return the argument of a command that a message ends with, as a shell passes it on."""
    (word,) = shlex.split(sentence.rpartition("; write ")[2].removesuffix("."))
    return word


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("key", ["image_dir", "+mlflow.tags.folder", "mlflow.experiment_name"])
def test_a_path_that_hydra_cannot_read_is_refused_with_its_quoted_form(key: str, path: str) -> None:
    with pytest.raises(HydraException) as error:
        OverridesParser.create().parse_overrides([f"{key}={path}"])
    override = OverridesParser.create().parse_override(pasted(format_error(error.value)))
    assert (override.input_line.partition("=")[0], override.value()) == (key, path)


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (
            "image_dir=a, b",
            "a comma separates the trials of a sweep: add --multirun, or write [...] for a list, or 'ima",
        ),
        ("optimizer.lr=1,2", "a comma separates the trials of a sweep: add --multirun, or write [...] for a list."),
        ("image_dir=my#flowers", "image_dir=my#flowers: Hydra needs quotes around such text; write 'image_dir=\"my#fl"),
        (
            "optimizer.lr=1#",
            "optimizer.lr=1#: Hydra cannot read one of its characters without quotes; write key=value.",
        ),
    ],
)
def test_a_command_line_is_refused_in_a_sentence(project: Project, typed: str, sentence: str) -> None:
    project.start(configure, typed).assert_refused(sentence)


def test_nested_interpolations_are_refused_with_their_quoted_form() -> None:
    typed = "optimizer.lr=${oc.decode:${oc.env:LR}}"
    with pytest.raises(HydraException) as error:
        OverridesParser.create().parse_overrides([typed])
    assert OverridesParser.create().parse_override(pasted(format_error(error.value))).value() == typed.partition("=")[2]


@pytest.fixture(scope="module")
def published() -> DictConfig:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PUBLISHED)
        return compose_config()


def refusal(config: DictConfig, typed: str) -> str:
    override = OverridesParser.create().parse_override(typed)
    changed = config.copy()
    OmegaConf.update(changed, override.key_or_group, override.value(), merge=False)
    with pytest.raises(UserError) as error:
        validate(changed)
    return str(error.value)


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("optimizer.lr=${oc.env:VALUE}", "0.01"),
        ("trainer.max_epochs=${oc.env:VALUE}", "3"),
        ("rerun=${oc.env:VALUE}", "true"),
        ("optimizer.lr='0.01'", ""),
        ("rerun='true'", ""),
        ("image_dir=2024", ""),
        ("image_dir=true", ""),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_a_form_that_has_the_right_one(
    published: DictConfig, monkeypatch: pytest.MonkeyPatch, typed: str, value: str
) -> None:
    monkeypatch.setenv("VALUE", value)
    sentence = refusal(published, typed)
    assert f"{typed.partition('=')[0]}=" in sentence and "text" in sentence
    (written,) = re.findall(r"(?:write|text:) (\S*'\S*'|\S+?)(?:, which|\.$)", sentence)
    override = OverridesParser.create().parse_override(*shlex.split(written))
    corrected = published.copy()
    OmegaConf.update(corrected, override.key_or_group, override.value(), merge=False)
    validate(corrected)


def test_a_text_that_looks_like_a_number_is_shown_as_text(published: DictConfig) -> None:
    assert 'seed="12:30" is not allowed' in refusal(published, "seed=12:30")
    assert refusal(published, "seed=0x10").endswith(", but this is text.")
    assert 'optimizer.lr="1e-3" is not allowed' in refusal(published, "optimizer.lr='1e-3'")


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("image_dir: no", '`image_dir: "no"` or `image_dir: false`'),
        ("image_dir: 12:30", 'image_dir is 750 for Hydra, but "12:30" for DVC: write `image_dir: "12:30"` or'),
        ("image_dir: null", "`image_dir: null` has no value for DVC"),
        ("image_dir: ${oc.env:HOME}", "has no value for DVC: write the path"),
        ("overrides: {rerun: yes}", '`rerun: "yes"` or `rerun: true`'),
    ],
)
def test_a_value_that_dvc_and_hydra_read_differently_is_refused(project: Project, written: str, sentence: str) -> None:
    key = written.partition(":")[0]
    line = next(line for line in (project.folder / "params.yaml").read_text().splitlines() if line.startswith(key))
    project.edit("params.yaml", line, written)
    with pytest.raises(UserError) as error:
        read_params()
    assert sentence in str(error.value)


def test_a_folder_in_another_form_of_unicode_is_refused(published: DictConfig, tmp_path: Path) -> None:
    (tmp_path / "cafe\u0301").mkdir()
    assert "the same characters in another Unicode form" in refusal(published, f"image_dir='{tmp_path}/caf\u00e9'")


@pytest.mark.parametrize("path", ["~/flowers", "~", "~other/flowers"])
def test_a_folder_whose_home_dvc_does_not_know_is_refused(published: DictConfig, path: str) -> None:
    assert f"image_dir={path}: DVC does not know `~`; write the whole path" in refusal(published, f"image_dir='{path}'")
