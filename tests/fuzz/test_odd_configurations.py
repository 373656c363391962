"""Any command line or params.yaml is accepted, or refused in one sentence; never with a traceback."""

import pytest
import yaml
from corruption import num_examples, run_examples
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from cifar_pipeline.config.compose import compose_config
from cifar_pipeline.config.schema import field_schemas, validate
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import ROOT
from helpers.source_tree import PUBLISHED

GROUPS = sorted(path.name for path in (ROOT / "conf").iterdir() if path.is_dir())
KEYS = sorted(field_schemas())
words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12)
plain = st.none() | st.booleans() | st.integers() | st.floats() | words
nested = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3))


@pytest.fixture(scope="module")
def published():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PUBLISHED)
        return OmegaConf.to_container(compose_config([]), resolve=True)


@num_examples(100)
def test_a_value_of_any_type_is_accepted_or_refused_in_a_sentence(examples, published):
    @run_examples(examples, st.sampled_from(KEYS), nested)
    def check(key, value):
        changed = OmegaConf.create(published)
        try:
            OmegaConf.update(changed, key, value, merge=False)
        except Exception:
            return  # OmegaConf's own error; the tests below check what a stage prints for it
        assert isinstance(changed, DictConfig)
        try:
            validate(changed)
        except UserError as error:
            assert str(error).endswith(".") and "\n" not in str(error)


def assert_run_or_refused(ended):
    """The stage ran, or was refused in one sentence."""
    assert ended.code in (0, 2), ended.err
    assert "Traceback" not in ended.err
    assert len(ended.err.splitlines()) == (1 if ended.code else 0), ended.err


def configure(_: DictConfig) -> None:
    """A stage that does nothing."""


@num_examples(25)
def test_any_command_line_is_accepted_or_refused_in_a_sentence(examples, project):
    keys = st.sampled_from([*KEYS, *GROUPS]) | words
    values = nested.map(lambda value: yaml.safe_dump(value, default_flow_style=True).strip()) | nested.map(str)
    overrides = st.builds("{}{}={}".format, st.sampled_from(["", "+", "++", "~"]), keys, values) | words

    @run_examples(examples, st.lists(overrides, min_size=1, max_size=2))
    def check(arguments):
        options = ("-", "hydra")
        assert_run_or_refused(
            project.start(configure, *(word for word in arguments if word and not word.startswith(options)))
        )


@num_examples(25)
def test_any_params_file_is_accepted_or_refused_in_a_sentence(examples, project):
    text = (project.folder / "params.yaml").read_text()
    params = yaml.safe_load(text)
    changes = st.dictionaries(st.sampled_from(sorted(params)) | words, nested, min_size=1, max_size=2)
    files = changes.map(lambda change: yaml.safe_dump(params | change, allow_unicode=True))

    @run_examples(examples, files | nested.map(yaml.safe_dump) | st.text(max_size=40).map(text.__add__))
    def check(content):
        (project.folder / "params.yaml").write_bytes(content.encode("utf-8", "replace"))
        assert_run_or_refused(project.start(configure))
