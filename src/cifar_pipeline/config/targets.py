"""What `_target_` names: which of an option's keys are arguments for it, and whether it takes them."""

import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any
from unittest.mock import patch

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from cifar_pipeline.config.choices import nearest, shown
from cifar_pipeline.config.sentences import refusal_in
from cifar_pipeline.console import Refusal

# Keys that stand in an option's file for the pipeline itself, beside the arguments of its `_target_`.
BESIDE: dict[str, set[str]] = {
    "optimizer": {"full_batch"},
    "loss": {"probabilities", "class_weights"},
    "average": {"every_step"},
}
# Arguments that the pipeline gives, so that no option can.
GIVEN: dict[str, set[str]] = {
    "model": {"channels", "size", "classes"},
    "optimizer": {"params"},
    "loss": {"reduction"},
    "schedule": {"step", "steps"},
    "augment": {"images", "generator", "turns"},
}
# Values that are names, and the function that knows them and refuses others.
NAMED = {"loss.probabilities": "cifar_pipeline.inference.probabilities.by_name"}
SIMPLE = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
HYDRAS = {"_target_", "_partial_", "_args_", "_recursive_", "_convert_"}


def arguments(options: Mapping[str, Any], group: str) -> dict[str, Any]:
    """The option as a plain dict for `hydra.utils.instantiate`: its target and that target's arguments."""
    plain = OmegaConf.to_container(options, resolve=True) if isinstance(options, DictConfig) else options
    assert isinstance(plain, Mapping)
    return {str(key): value for key, value in plain.items() if key not in BESIDE.get(group, set())}


def check_targets(config: DictConfig) -> None:
    """Refuse what the class or function named by a `_target_` refuses: unknown arguments, values, combinations.

    Imports what the targets name, torch among it, which takes seconds.
    """
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    for key, node in _targets({str(key): value for key, value in plain.items()}):
        _check(key, arguments(node, key))
    for key, function in NAMED.items():
        get_object(function)(OmegaConf.select(config, key))


def _check(key: str, node: Mapping[str, Any]) -> None:
    target = node["_target_"]
    try:
        takes = inspect.signature(get_object(target)).parameters
    except Exception as error:
        raise Refusal(f"{key}._target_={target} cannot be imported: {_reason(target, error)}") from None
    given = GIVEN.get(key, set())
    for name, value in node.items():
        if name in HYDRAS:
            continue
        if name in given:
            raise Refusal(f"{key}.{name} is not for conf/ to say: the pipeline gives it to {target} itself.")
        if name not in takes:
            if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in takes.values()):
                continue
            allowed = [parameter for parameter in takes if parameter not in given]
            raise Refusal(f"{key}.{name}: {target} takes no such argument{_instead(name, allowed)}")
        kind = takes[name].annotation
        number_for_number = kind is float and isinstance(value, int) and not isinstance(value, bool)
        if kind in SIMPLE and not (type(value) is kind or number_for_number):
            raise Refusal(f"{key}.{name}={shown(value)} is not allowed; {target} takes {SIMPLE[kind]}.")
    if key in TRIES:
        _try(key, node)


def _instead(name: str, allowed: list[str]) -> str:
    return f"; {nearest(name, allowed)}" if allowed else ", nor any other."


def _try(key: str, node: Mapping[str, Any]) -> None:
    """Build it once and use it a little: a class has rules of its own for its arguments."""
    try:
        TRIES[key](instantiate(node, _convert_="all"))
    except Exception as error:
        refusal = refusal_in(error)
        if refusal is not None:
            raise refusal from None
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        reason = " ".join(str(cause).split()).rstrip(".")
        values = ", ".join(f"{name}={shown(value)}" for name, value in node.items() if name not in HYDRAS)
        raise Refusal(f"{key}: {node['_target_']} refuses {values}: {reason}.") from None


def _build_optimizer(build: Callable[..., Any]) -> None:
    from torch import nn
    from torch.optim import Optimizer

    # As torch wraps it, it imports torch's compiler, which takes seconds, in order not to be compiled.
    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    with patch.object(Optimizer, "add_param_group", add_param_group):
        build([nn.Parameter()])


TRIES: dict[str, Callable[[Any], Any]] = {
    "loss": lambda loss: loss,
    "optimizer": _build_optimizer,
    "schedule": lambda factor: factor(0, 1),
    "data.source": lambda source: source,
    "data.fallback": lambda source: source,
}


def _reason(target: str, error: BaseException) -> str:
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
            if "_target_" in value:
                yield f"{path}{key}", value
            yield from _targets(value, f"{path}{key}.")
