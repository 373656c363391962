"""Hydra's and OmegaConf's errors, told in one sentence that says what to write instead."""

import re
from difflib import get_close_matches

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cifar_pipeline.config.choices import CONF, broken_yaml, groups, nearest
from cifar_pipeline.console import Refusal

# Groups that come with packages of their own, hydra-joblib-launcher for one, and what those names end with.
PLUGINS = {"hydra/launcher": "launcher", "hydra/sweeper": "sweeper"}
# The extras of pyproject.toml that bring those that conf/ names, and how each is installed.
WITH_PINS, WITHOUT = (
    "pip install --constraint constraints.txt --editable '.[launchers]'",
    "pip install --editable '.[ray]'",
)
INSTALLED_BY = {"joblib": WITH_PINS, "submitit": WITH_PINS, "optuna": WITH_PINS, "ray": WITHOUT}


def refusal_in(error: BaseException | None) -> Refusal | None:
    """The refusal behind an error, which Hydra wraps into its own when a constructor raises it."""
    while error is not None and not isinstance(error, Refusal):
        error = error.__cause__
    return error


def sentence(error: BaseException) -> str:
    """What is wrong and what to write instead, from a refusal or from an error of Hydra, OmegaConf or YAML."""
    if isinstance(error, Refusal):
        return str(error)
    if isinstance(error, YAMLError):
        return broken_yaml(error)
    if isinstance(error, MissingConfigException):
        return _unknown_option(error)
    if isinstance(error, OverrideParseException):
        reasons = [line for line in error.message.splitlines() if not re.match(r"See https|Error parsing", line)]
        return f"{' '.join(str(error.override).split())}: this cannot be read ({' '.join(reasons)}); write key=value."
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OmegaConfBaseException) and cause.full_key and "is not in struct" in str(cause):
            return _unknown_key(cause)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {str(error).splitlines()[0]}."
    if isinstance(error, ConfigCompositionException | HydraException):
        return _composition(" ".join(str(error).split()))
    return " ".join(str(error).split())


def _unknown_option(error: MissingConfigException) -> str:
    if not error.missing_cfg_file or not error.options:
        return " ".join(str(error).split())
    group, _, option = error.missing_cfg_file.rpartition("/")
    group = group.strip("/")
    if group in PLUGINS:
        plugin = option.removesuffix("_local").removesuffix("_slurm")
        if plugin in INSTALLED_BY:
            return f"{group}={option} is not installed: `{INSTALLED_BY[plugin]}` installs it."
        package = f"hydra-{plugin}-{PLUGINS[group]}"
        return f"{group}={option} is not installed, or there is none of this name; try `pip install {package}`."
    return f"{group}={option}: {CONF}/{group}/ has no file of this name; {nearest(option, sorted(error.options))}"


def _unknown_key(error: OmegaConfBaseException) -> str:
    full_key = str(error.full_key)
    key = full_key.rpartition(".")[2]
    parent = error.parent_node
    siblings = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
    target = parent.get("_target_") if isinstance(parent, DictConfig) and "_target_" in siblings else None
    where = f"the chosen option ({target}) has no such key" if target else f"no chosen file of {CONF}/ has this key"
    close = get_close_matches(key, siblings, n=1)
    names = [name for name in siblings if not re.fullmatch(r"_\w+_", name) and name != "hydra"]
    if close:
        return f"{full_key}: {where}; did you mean `{full_key[: -len(key)]}{close[0]}`?"
    return f"{full_key}: {where}; {'allowed are ' + ', '.join(names) if names else 'it has none'}."


def _composition(text: str) -> str:
    """What Hydra says about a defaults list or an override, with what to write instead."""
    if found := re.match(r"In '?(?P<file>\S+?)'?: Could not override '\S+@experiment\.", text):
        return f"{CONF}/{found['file']}.yaml must open with the line `# @package _global_`."
    if found := re.match(r"In '?(?P<file>\S+?)'?: Could not override '(?P<group>\S+?)'", text):
        return f"{CONF}/{found['file']}.yaml: there is no group `{found['group']}`; {nearest(found['group'], groups())}"
    if found := re.match(r"Multiple values for (?P<group>[^\s.]+)\.", text):
        return f"{found['group']}: an option of it is chosen already; write {found['group']}=... without a +."
    if found := re.match(r"Ambiguous value for argument '(?P<override>\S+)'", text):
        return f"{found['override']}: only a sweep takes several values; add -m, or write them as a [list]."
    return text
