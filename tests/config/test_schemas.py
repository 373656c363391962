"""The JSON schemas for editors accept all of conf/ and reject what the program rejects."""

import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from omegaconf import OmegaConf

from build_docs import build_docs
from cifar_pipeline.cli.documents import SCHEMA_DIR, documents
from cifar_pipeline.config.compose import compose_config
from cifar_pipeline.config.json_schema import dotted_keys, schemas
from cifar_pipeline.config.params import LOCAL_FOLDER, NON_PARAM_GROUPS
from cifar_pipeline.config.reference import read_groups
from cifar_pipeline.config.schema import field_schemas, validate
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import ROOT, Project, run
from helpers.source_tree import PUBLISHED

SCHEMAS = schemas(ROOT / "conf")
FILES = [ROOT / "params.yaml", *sorted((ROOT / "conf").rglob("*.yaml"))]
SETTINGS = json.loads((ROOT / ".vscode" / "settings.json").read_text())["yaml.schemas"]
VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 65535, 65536, 4294967295, 4294967296, -0.5, 0.0, 0.25, 1.0, 1.5, "", "a", "auto",
    "last", "32-true", "simple", [], [0.5], [0.5, 0.9], [0.5, 0.9, 0.1], ["a"], ["a", "b"], [1, 2], {},
    {"_target_": "a.B"},
]  # fmt: skip

GROUP_TYPES = ("object", ["object", "null"])


def schema_of(file: Path) -> str:
    """The name of the schema that an editor uses for a file."""
    path = f"/{file.relative_to(ROOT).as_posix()}"
    (schema,) = [
        name for name, pattern in SETTINGS.items() if fnmatch(path, pattern) and path.count("/") == pattern.count("/")
    ]
    return Path(schema).stem


def errors(schema: str, content: Any) -> list[str]:
    return [error.message for error in Draft7Validator(SCHEMAS[schema]).iter_errors(content)]


def test_the_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (page,) = (path for path in documents() if path.suffix == ".md")
    assert page.read_text(encoding="utf-8") == documents()[page], f"{page} is out of date: `make docs` writes it"


def test_the_schemas_are_written_and_stale_ones_removed(project: Project) -> None:
    project.write("schema/gone.json", "{}")
    assert run(build_docs, "--schemas-only").code is None
    written = {path.stem: json.loads(path.read_text()) for path in (project.folder / SCHEMA_DIR).iterdir()}
    assert written == SCHEMAS
    assert not (project.folder / "docs").exists()


def test_every_schema_is_one() -> None:
    for schema in SCHEMAS.values():
        Draft7Validator.check_schema(schema)


def test_every_file_is_valid_by_its_schema() -> None:
    for file in FILES:
        schema, content = schema_of(file), OmegaConf.to_container(OmegaConf.load(file))
        assert errors(schema, content) == [], file
        assert errors(schema, {**content, "misspelt": 1}), f"{file}: an unknown key"


def test_editor_settings_name_every_schema_and_no_other() -> None:
    assert {Path(name).stem for name in SETTINGS} == set(SCHEMAS)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ("params", "experiment: tutoral"),
        ("params", "experiment: tutorial\noptimiser: adam"),
        ("params", "optimizer: adm"),
        ("params", "seed: zero"),
        ("params", "seed: -1"),
        ("params", "overrides: {optimizer: {lrr: 0.1}}"),
        ("params", "overrides: {trainer: {max_epochs: ten}}"),
        ("params", "overrides: {trainer: {max_epochs: 1.5}}"),
        ("params", "overrides: {data: {source: {sise: 16}}}"),
        ("optimizer", "_target_: torch.optim.Adam\nlr: fast"),
        ("optimizer", "_target_: torch.optim.Adam\nlr: 0"),
        ("optimizer", "_target_: torch.optim.Adam\nmomentum: 0.9"),
        ("optimizer", "defaults: [adam, _self_]\nlrr: 0.1"),
        ("optimizer", "_target_: torch.optim.Adam\nbetas: [0.9]"),
        ("optimizer", "_target_: torch.optim.Adam\nfull_batch: 1"),
        ("scheduler", "_target_: cifar_pipeline.training.schedulers.cosine\nwarmup_fraction: 1.5"),
        ("precision", "cpu: 31-true"),
        ("runtime", "threads: many"),
        ("experiment", "defaults: [override /optimizer: adm]"),
        ("experiment", "trainer: {batchsize: 4}"),
        ("sweep", "hydra: {sweeper: {params: {optimizer.lrr: '0.1,0.2'}}}"),
        ("config", "defaults: [optimiser: sgd]"),
        ("data", "val_fraction: 1.0"),
    ],
)
def test_an_error_is_reported_once(schema: str, text: str) -> None:
    assert len(errors(schema, yaml.safe_load(text))) == 1


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ("params", "experiment: null\noptimizer: adam\noverrides: {optimizer: {lr: 0.1}, rerun: true}"),
        ("params", "experiment: tutorial\noverrides: {data: {source: {size: 16}}, trainer: {gradient_clip_val: 1}}"),
        ("model", "_target_: custom.Network\ndropout: 0.1"),
        ("optimizer", "_target_: torch.optim.Adagrad\nlr_decay: 0.1\nlr: 0.01"),
        ("sweep", "hydra: {sweeper: {params: {optimizer.lr: '0.1,0.2', seed: 1}}}"),
    ],
)
def test_valid_content_has_no_errors(schema: str, text: str) -> None:
    assert errors(schema, yaml.safe_load(text)) == []


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PUBLISHED)
        # data.fold must be below data.folds; clipping and averaging are needed for their keys to have an effect.
        needed = [
            "data.folds=8000000000",
            "trainer.gradient_clip_val=1",
            "weight_averaging=ema",
            "~weight_averaging.decay",
        ]
        return OmegaConf.to_container(compose_config(needed))  # type: ignore[return-value]


NOT_COMPARED = ("default", "description", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def same_as_before() -> list[Any]:
    """Return the keys; those whose schema another key has as well, but for description and limits, are marked long."""
    seen: set[str] = set()
    keys = []
    for key, schema in field_schemas().items():
        content = json.dumps({name: value for name, value in schema.items() if name not in NOT_COMPARED})
        keys.append(pytest.param(key, marks=[pytest.mark.long] if content in seen else []))
        seen.add(content)
    return keys


@pytest.mark.parametrize("key", same_as_before())
def test_a_schema_accepts_the_same_values_as_the_validation(
    composed: dict[str, Any], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each message would read params.yaml.
    monkeypatch.setattr("cifar_pipeline.config.schema.named_if_in_params", lambda key, value: "")
    schema = field_schemas()[key]
    validator = Draft7Validator(schema)
    config = OmegaConf.create(composed)
    for value in VALUES:
        # JSON Schema treats 1.0 as an integer, and the schema of a group here has no keys.
        if (isinstance(value, float) and value.is_integer()) or isinstance(value, dict):
            continue
        OmegaConf.update(config, key, value)
        try:
            validate(config)
        except UserError as error:
            assert f"{key}=" in str(error), f"{key}={value!r}: {error}"
            # An allowed value may be refused beside another one, of which a schema knows nothing.
            assert not validator.is_valid(value) or "has no effect" in str(error), f"{key}: {value!r} is not allowed"
        else:
            assert validator.is_valid(value), f"{key}: {value!r} is allowed"


def test_a_value_that_an_interpolation_gives_is_validated(composed: dict[str, Any]) -> None:
    config = OmegaConf.create(composed)
    config.trainer.max_epochs = "${oc.decode:'-1'}"
    with pytest.raises(UserError, match="trainer.max_epochs=-1"):
        validate(config)


def test_a_key_has_its_comment_and_its_constraint_as_description() -> None:
    description = SCHEMAS["runtime"]["properties"]["checkpoint_interval_seconds"]["description"]
    assert description.startswith("Seconds between two checkpoints") and "a number above 0, or null" in description


def test_the_page_has_every_key_and_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE))
    declared = {key for key, schema in field_schemas().items() if schema.get("type") not in GROUP_TYPES}
    declared = {key for key in declared if not key.endswith("._target_") and not key.startswith("data.fallback.")}
    assert declared <= documented
    for file in FILES[1:]:
        is_listed = file.name != "config.yaml" and file.parent.name != LOCAL_FOLDER
        assert not is_listed or f"](../{file.relative_to(ROOT).as_posix()})" in text
    groups = {name: group for name, group in read_groups(ROOT / "conf").items() if name not in NON_PARAM_GROUPS}
    assert {key for key in dotted_keys(groups) if not key.startswith("data.fallback.")} <= documented
