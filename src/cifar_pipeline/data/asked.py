"""What was asked for and what is there: the values of `data` that decide which images are trained on."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from cifar_pipeline.config.choices import shown
from cifar_pipeline.console import Refusal
from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.nested import flat

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
    wanted, made = asked_values(data), dict(dataset.asked)
    for role in ("source", "fallback"):
        if _target(wanted[role]) != _target(made.get(role)):  # then its further values need no comparison
            wanted[role], made[role] = _option(wanted[role]), _option(made.get(role))
    wanted, made = flat(wanted), flat(made)
    differing = [key for key in dict.fromkeys([*wanted, *made]) if wanted.get(key) != made.get(key)]
    if not differing:
        return
    key = differing[0]
    value = wanted.get(key)
    if key == "source":
        remedy = f"`data: {value}`"
    elif key == "fallback" and value is not None:
        remedy = "the option of `data` that has this fallback"
    else:
        remedy = f"`overrides: {_nested('data.' + key, value)}`"
    raise Refusal(
        f"{dataset.folder} was made for data.{key}={shown(made.get(key))}, but this configuration asks for "
        f"data.{key}={shown(value)}: write {remedy} in params.yaml and run `dvc repro preprocess`, or train with what "
        "it was made for."
    )


def _target(source: Any) -> Any:
    return source["_target_"] if source else None


def _option(source: Any) -> str | None:
    """An option of conf/data bears the name of the module that its source lives in."""
    return _target(source).split(".")[-2] if source else None


def _nested(key: str, value: Any) -> str:
    head, _, rest = key.partition(".")
    return f"{{{head}: {_nested(rest, value) if rest else shown(value)}}}"
