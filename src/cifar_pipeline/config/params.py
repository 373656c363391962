"""params.yaml as a part of Hydra's defaults tree: the config named `choices`, which conf/config.yaml lists last."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.safe_io import require_bounded

CONF = Path("conf")
PARAMS = Path("params.yaml")
# What only a sweep (`-m`) has: which trainings, and who starts them.
SWEEP_GROUPS = ("sweep", "launcher")
# Groups that are no part of what a training is: `experiment` stands by itself.
NON_PARAM_GROUPS = ("experiment", *SWEEP_GROUPS)
# Groups whose options have the same keys, so that an experiment's values suit each of them.
SHARED_GROUPS = {"trainer", "data"}
# What params.yaml gives a value itself.
TOP_LEVEL_KEYS = ("seed", "image_dir")


def groups() -> list[str]:
    """The groups of conf/ that params.yaml can choose an option of, by name."""
    return sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in NON_PARAM_GROUPS)


def is_params_key(key: str) -> bool:
    """Whether params.yaml has this key on its top level."""
    return key in ("experiment", *TOP_LEVEL_KEYS, *groups())


def register_params() -> None:
    """Put params.yaml into Hydra's ConfigStore, so that every way to start a stage composes the same configuration.

    Raises `Refusal` where params.yaml is missing, is no YAML or has a key that nothing reads.
    """
    params = read_params()
    overrides = params.get("overrides") or {}
    store = ConfigStore.instance()
    # From here on a key that no file of conf/ has is an error instead of a new key.
    store.store("strict", DictConfig({}, flags={"struct": True}), package="_global_")
    # An experiment of null composes the groups alone, and can still be chosen on the command line.
    defaults: list[Any] = [{"/experiment": params.get("experiment")}, "strict"]
    defaults += [{f"override /{group}": params[group]} for group in groups() if params.get(group) is not None]
    defaults.append("_self_")
    values = {key: params[key] for key in TOP_LEVEL_KEYS if params.get(key) is not None}
    store.store("choices", OmegaConf.create({"defaults": defaults, **overrides, **values}), package="_global_")


def read_params() -> dict[str, Any]:
    """The content of params.yaml, its keys checked."""
    if not CONF.is_dir() or not PARAMS.is_file():
        raise UserError(f"There is no {CONF}/ or no {PARAMS} in {Path.cwd()}: run this from the project's root folder.")
    try:
        # As Hydra reads conf/: 1e-3 is a number, and a key that stands twice is an error.
        require_bounded(PARAMS.read_text(encoding="utf-8"), str(PARAMS))
        params = OmegaConf.to_container(OmegaConf.load(PARAMS))
    except yaml.YAMLError as error:
        raise UserError(describe_yaml_error(error)) from None
    except OSError as error:
        if error.errno is not None:
            raise
        params = None  # A single value: OmegaConf has this error for it.
    if not isinstance(params, dict) or not params:
        raise UserError(f"{PARAMS} must be a mapping that names an experiment, such as `experiment: tutorial`.")
    _refuse_unknown(params)
    return {str(key): value for key, value in params.items()}


def describe_yaml_error(error: yaml.YAMLError) -> str:
    """What is wrong with a YAML file, and where."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return f"A configuration file is no valid YAML: {' '.join(str(error).split())}."
    path = Path(mark.name)
    place = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{place}, line {mark.line + 1}, is no valid YAML: {problem}."


def _refuse_unknown(params: Mapping[Any, Any]) -> None:
    allowed = ["experiment", *TOP_LEVEL_KEYS, *groups(), "overrides"]
    for key, value in params.items():
        if key not in allowed:
            raise UserError(f"{PARAMS}: nothing reads the key `{key}`; {suggest(str(key), allowed)}")
        if key not in (*TOP_LEVEL_KEYS, "overrides") and value is not None and not isinstance(value, str):
            raise UserError(f"{PARAMS}: `{key}` names a file of {CONF}/{key}/, which {to_yaml_inline(value)} is not.")
    overrides = params.get("overrides") or {}
    if not isinstance(overrides, dict):
        raise UserError(
            f"{PARAMS}: `overrides` must be a mapping such as {{optimizer: {{lr: 0.002}}}}, not {to_yaml_inline(overrides)}."
        )
    for key, value in overrides.items():
        if key in allowed and not isinstance(value, dict):
            raise UserError(
                f"{PARAMS}: `overrides` holds what has no place of its own; write `{key}: {to_yaml_inline(value)}` above it."
            )


def reject_invalid_group_overrides(arguments: list[str]) -> None:
    """Refuse `optimizer=3`, `optimizer=null` or `optimizer=[]` on the command line, for which Hydra has no words."""
    number = r"[-+]?([\d._]+(e[-+]?\d+)?|inf|nan)"
    value, nested = re.compile(rf"null|true|false|{number}", re.IGNORECASE), ("[", "{")
    for argument in arguments:
        key, _, option = argument.partition("=")
        group, told = key.lstrip("+~"), " ".join(argument.split())
        if not group:
            raise UserError(f"{told or 'An empty argument'}: this names no key; write key=value.")
        known = group in (*NON_PARAM_GROUPS, *groups())
        # No sweep and no launcher (null) may be chosen.
        if known and (option.startswith(nested) or (group not in SWEEP_GROUPS and value.fullmatch(option))):
            raise UserError(f"{told}: {CONF}/{group}/ has no file of this name; {suggest(option, options(group))}")


def reject_values_of_other_options(chosen: Mapping[str, str]) -> None:
    """Refuse an experiment's values for one option, such as Muon's learning rate, with another option of that group.

    Args:
        chosen: the option of each group, `experiment` among them.
    """
    experiment = chosen.get("experiment", "None")
    if experiment in ("None", ""):
        return
    expected, keys = _experiment_values(experiment)
    for group in sorted(set(keys) - SHARED_GROUPS):
        if chosen.get(group) != expected[group]:
            names = " and ".join(f"{group}.{key}" for key in keys[group])
            raise UserError(
                f"{group}={chosen.get(group)}: experiment={experiment} sets {names} for {group}={expected[group]}, "
                f"which {chosen.get(group)} would be given too; choose another experiment, such as tutorial."
            )


def _experiment_values(name: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The option that an experiment chooses of each group, and the keys of it that the experiment gives values."""
    content = OmegaConf.to_container(OmegaConf.load(CONF / "experiment" / f"{name}.yaml"))
    assert isinstance(content, dict)
    chosen: dict[str, str] = {}
    keys: dict[str, list[str]] = {}
    for entry in content.get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            parent, inherited = _experiment_values(entry)
            chosen |= parent
            keys |= inherited
        elif isinstance(entry, dict):
            chosen |= {key.removeprefix("override /"): option for key, option in entry.items()}
    for group in groups():
        if isinstance(content.get(group), dict):
            keys[group] = [*keys.get(group, []), *(key for key in content[group] if key not in keys.get(group, []))]
    return chosen, keys


def options(group: str) -> list[str]:
    """The options of a group, by name."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def suggest(word: str, allowed: list[str]) -> str:
    """What to write instead of `word`: the nearest of the allowed words, or all of them."""
    close = get_close_matches(word, allowed, n=1)
    return f"did you mean `{close[0]}`?" if close else f"allowed are {', '.join(allowed)}."


def to_yaml_inline(value: Any) -> str:
    """A value as a person would write it in YAML or on the command line."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {to_yaml_inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_yaml_inline, value)) + "]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value)
