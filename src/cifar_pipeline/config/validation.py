"""Hydra's and OmegaConf's errors, told in one sentence that says what to write instead.

What `_target_` names: which of an option's keys are arguments for it, and whether it takes them.
"""

import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any
from unittest.mock import patch

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cifar_pipeline.config.params import CONF, describe_yaml_error, groups, suggest, to_yaml_inline
from cifar_pipeline.utils.errors import UserError

# Groups that come with packages of their own, hydra-joblib-launcher for one, and what those names end with.
PLUGINS = {"hydra/launcher": "launcher", "hydra/sweeper": "sweeper"}
# The extras of pyproject.toml that bring those that conf/ names, and how each is installed.
PIP_PINNED, PIP_UNPINNED = (
    "pip install --constraint constraints.txt --editable '.[launchers]'",
    "pip install --editable '.[ray]'",
)
INSTALLED_BY = {"joblib": PIP_PINNED, "submitit": PIP_PINNED, "optuna": PIP_PINNED, "ray": PIP_UNPINNED}


def find_user_error(error: BaseException | None) -> UserError | None:
    """The refusal behind an error, which Hydra wraps into its own when a constructor raises it."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def format_error(error: BaseException) -> str:
    """What is wrong and what to write instead, from a refusal or from an error of Hydra, OmegaConf or YAML."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, YAMLError):
        return describe_yaml_error(error)
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
        return _format_composition_error(" ".join(str(error).split()))
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
    return f"{group}={option}: {CONF}/{group}/ has no file of this name; {suggest(option, sorted(error.options))}"


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


def _format_composition_error(text: str) -> str:
    """What Hydra says about a defaults list or an override, with what to write instead."""
    if found := re.match(r"In '?(?P<file>\S+?)'?: Could not override '\S+@experiment\.", text):
        return f"{CONF}/{found['file']}.yaml must open with the line `# @package _global_`."
    if found := re.match(r"In '?(?P<file>\S+?)'?: Could not override '(?P<group>\S+?)'", text):
        return f"{CONF}/{found['file']}.yaml: there is no group `{found['group']}`; {suggest(found['group'], groups())}"
    if found := re.match(r"Multiple values for (?P<group>[^\s.]+)\.", text):
        return f"{found['group']}: an option of it is chosen already; write {found['group']}=... without a +."
    if found := re.match(r"Ambiguous value for argument '(?P<override>\S+)'", text):
        return f"{found['override']}: only a sweep takes several values; add -m, or write them as a [list]."
    return text


# Keys that stand in an option's file for the pipeline itself, beside the arguments of its `_target_`.
PIPELINE_KEYS: dict[str, set[str]] = {
    "optimizer": {"full_batch"},
    "loss": {"output_activation", "class_weights"},
}
# Arguments that the pipeline gives, so that no option can.
INJECTED_ARGS: dict[str, set[str]] = {
    "model": {"channels", "size", "classes"},
    "optimizer": {"params"},
    "loss": {"reduction"},
    "scheduler": {"step", "steps"},
    "augmentation": {"images", "generator", "flip_mask"},
}
# Values that are names, and the function that knows them and refuses others.
NAME_LOOKUPS = {"loss.output_activation": "cifar_pipeline.models.wrappers.get_activation"}
TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
HYDRA_KEYS = {"_target_", "_partial_", "_args_", "_recursive_", "_convert_"}


def target_config(options: Mapping[str, Any], group: str) -> dict[str, Any]:
    """The option as a plain dict for `hydra.utils.instantiate`: its target and that target's arguments."""
    plain = OmegaConf.to_container(options, resolve=True) if isinstance(options, DictConfig) else options
    assert isinstance(plain, Mapping)
    return {str(key): value for key, value in plain.items() if key not in PIPELINE_KEYS.get(group, set())}


def check_targets(config: DictConfig) -> None:
    """Refuse what the class or function named by a `_target_` refuses: unknown arguments, values, combinations.

    Imports what the targets name, torch among it, which takes seconds.
    """
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    for key, node in _targets({str(key): value for key, value in plain.items()}):
        _check(key, target_config(node, key))
    for key, function in NAME_LOOKUPS.items():
        get_object(function)(OmegaConf.select(config, key))


def _check(key: str, node: Mapping[str, Any]) -> None:
    target = node["_target_"]
    try:
        takes = inspect.signature(get_object(target)).parameters
    except Exception as error:
        raise UserError(f"{key}._target_={target} cannot be imported: {_import_error_reason(target, error)}") from None
    given = INJECTED_ARGS.get(key, set())
    for name, value in node.items():
        if name in HYDRA_KEYS:
            continue
        if name in given:
            raise UserError(f"{key}.{name} is not for conf/ to say: the pipeline gives it to {target} itself.")
        if name not in takes:
            if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in takes.values()):
                continue
            allowed = [parameter for parameter in takes if parameter not in given]
            raise UserError(f"{key}.{name}: {target} takes no such argument{_suggestion(name, allowed)}")
        kind = takes[name].annotation
        number_for_number = kind is float and isinstance(value, int) and not isinstance(value, bool)
        if kind in TYPE_NAMES and not (type(value) is kind or number_for_number):
            raise UserError(f"{key}.{name}={to_yaml_inline(value)} is not allowed; {target} takes {TYPE_NAMES[kind]}.")
    if key in SMOKE_BUILDS:
        _smoke_build(key, node)


def _suggestion(name: str, allowed: list[str]) -> str:
    return f"; {suggest(name, allowed)}" if allowed else ", nor any other."


def _smoke_build(key: str, node: Mapping[str, Any]) -> None:
    """Build it once and use it a little: a class has rules of its own for its arguments."""
    try:
        SMOKE_BUILDS[key](instantiate(node, _convert_="all"))
    except Exception as error:
        refusal = find_user_error(error)
        if refusal is not None:
            raise refusal from None
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        reason = " ".join(str(cause).split()).rstrip(".")
        values = ", ".join(f"{name}={to_yaml_inline(value)}" for name, value in node.items() if name not in HYDRA_KEYS)
        raise UserError(f"{key}: {node['_target_']} refuses {values}: {reason}.") from None


def _build_optimizer(build: Callable[..., Any]) -> None:
    from torch import nn
    from torch.optim import Optimizer

    # As torch wraps it, it imports torch's compiler, which takes seconds, in order not to be compiled.
    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    with patch.object(Optimizer, "add_param_group", add_param_group):
        build([nn.Parameter()])


SMOKE_BUILDS: dict[str, Callable[[Any], Any]] = {
    "loss": lambda loss: loss,
    "optimizer": _build_optimizer,
    "scheduler": lambda factor: factor(0, 1),
    "data.source": lambda source: source,
    "data.fallback": lambda source: source,
}


def _import_error_reason(target: str, error: BaseException) -> str:
    """Why a target cannot be imported: the name that its module does not have, or the module's own error."""
    parts = target.split(".")
    found: Any = None
    for count, part in enumerate(parts, 1):
        name = ".".join(parts[:count])
        try:
            found = getattr(found, part) if hasattr(found, part) else import_module(name)
        except ModuleNotFoundError as missing:
            if found is None or (missing.name != name and not (missing.name or "").startswith(f"{name}.")):
                break
            inside = [module.name for module in pkgutil.iter_modules(getattr(found, "__path__", []))]
            close = get_close_matches(part, [*inside, *vars(found)], n=1)
            where = name.rpartition(".")[0]
            return f"{where} has no `{part}`" + (f"; did you mean `{close[0]}`?" if close else ".")
        except Exception as broken:
            error = broken
            break
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()).rstrip(".") + "."


def target_names(node: Any) -> Iterator[str]:
    """What the `_target_`s in nested values name, in lists as well."""
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from target_names(value)
    elif isinstance(node, list):
        for value in node:
            yield from target_names(value)


def _targets(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for key, value in node.items():
        if isinstance(value, dict):
            if isinstance(value.get("_target_"), str):
                yield f"{path}{key}", value
            yield from _targets(value, f"{path}{key}.")
