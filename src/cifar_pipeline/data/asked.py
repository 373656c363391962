"""What was asked for and what is there: the values of `data` that decide which images are trained on."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cifar_pipeline.console import Refusal
from cifar_pipeline.data.dataset import Dataset

# Mirrors and timeouts change the route, not the images.
KEYS = ("source", "fallback", "val_fraction", "split_seed")


def asked_values(data: DictConfig) -> dict[str, Any]:
    """The values of the configuration's `data` that decide about the images, as plain dictionaries and numbers."""
    values = OmegaConf.to_container(data, resolve=True)
    assert isinstance(values, dict)
    return {key: values[key] for key in KEYS}


def used_values(asked: dict[str, Any], by_fallback: bool) -> dict[str, Any]:
    """The values that were used: the fallback has stepped into the source's place, or it was not needed."""
    return {**asked, "source": asked["fallback"] if by_fallback else asked["source"]}


def require(dataset: Dataset, data: DictConfig) -> None:
    """Refuse to go on where `dataset` was made for other values than the configuration's `data` asks for."""
    wanted, made = _flat(asked_values(data)), _flat(dataset.asked)
    differing = [key for key in dict.fromkeys([*wanted, *made]) if wanted.get(key) != made.get(key)]
    if not differing:
        return
    key = differing[0]
    others = f" (and {', '.join(f'data.{other}' for other in differing[1:])} differ)" if differing[1:] else ""
    if key == "source._target_" and wanted.get(key):
        remedy = f"`data: {_option(wanted[key])}`"
    elif key == "fallback._target_" or key == "fallback":
        remedy = "the option of `data` whose fallback this is"
    else:
        remedy = f"`overrides: {_nested('data.' + key, wanted.get(key))}`"
    raise Refusal(
        f"{dataset.folder} was made for data.{key}={_shown(made.get(key))}, but this configuration asks for "
        f"data.{key}={_shown(wanted.get(key))}{others}: write {remedy} in params.yaml and run `dvc repro preprocess`, "
        "or train with the values that it was made for."
    )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, Mapping):
        return {prefix: values}
    return {
        key: value
        for name, inner in values.items()
        for key, value in _flat(inner, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def _option(target: str) -> str:
    """An option of conf/data bears the name of the module that its source lives in."""
    return target.split(".")[-2] if "." in target else target


def _nested(key: str, value: Any) -> str:
    head, _, rest = key.partition(".")
    return f"{{{head}: {_nested(rest, value) if rest else _shown(value)}}}"


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
