"""What `_target_` names: which of an option's keys are arguments for it, and whether it takes them."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from cifar_pipeline.config.choices import nearest
from cifar_pipeline.console import Refusal

# Keys that stand in an option's file for the pipeline itself, beside the arguments of its `_target_`.
BESIDE: dict[str, set[str]] = {"optimizer": {"full_batch"}, "loss": {"probabilities"}}
SIMPLE = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


def arguments(options: Mapping[str, Any], group: str) -> dict[str, Any]:
    """The option as a plain dict for `hydra.utils.instantiate`: its target and that target's arguments."""
    plain = OmegaConf.to_container(options, resolve=True) if isinstance(options, DictConfig) else options
    assert isinstance(plain, Mapping)
    return {str(key): value for key, value in plain.items() if key not in BESIDE.get(group, set())}


def check_targets(config: DictConfig) -> None:
    """Refuse arguments that the class or function named by `_target_` does not take, or not of this type.

    Imports what the targets name, torch among it, which takes seconds.
    """
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    for key, node in _targets({str(key): value for key, value in plain.items()}):
        _check(key, arguments(node, key))


def _check(key: str, node: Mapping[str, Any]) -> None:
    target = node["_target_"]
    try:
        takes = inspect.signature(get_object(target)).parameters
    except Exception as error:
        raise Refusal(f"{key}._target_={target} cannot be imported: {_reason(error)}.") from None
    for name, value in node.items():
        if name.startswith("_"):
            continue
        if name not in takes:
            if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in takes.values()):
                continue
            raise Refusal(f"{key}.{name}: {target} takes no such argument; {nearest(name, list(takes))}")
        kind = takes[name].annotation
        number_for_number = kind is float and isinstance(value, int) and not isinstance(value, bool)
        if kind in SIMPLE and not (type(value) is kind or number_for_number):
            raise Refusal(f"{key}.{name}={value!r} is not allowed; {target} takes {SIMPLE[kind]}.")


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()).rstrip(".")


def _targets(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for key, value in node.items():
        if isinstance(value, dict):
            if "_target_" in value:
                yield f"{path}{key}", value
            yield from _targets(value, f"{path}{key}.")
