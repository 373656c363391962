"""params.yaml as a part of Hydra's defaults tree: the config named `choices`, which conf/config.yaml lists last."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from cifar_pipeline.console import Refusal

CONF = Path("conf")
PARAMS = Path("params.yaml")


def groups() -> list[str]:
    """The groups of conf/ that params.yaml can choose an option of, by name."""
    return sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "experiment")


def register_choices() -> None:
    """Put params.yaml into Hydra's ConfigStore, so that every way to start a stage composes the same configuration.

    Raises `Refusal` where params.yaml is missing, is no YAML or has a key that nothing reads.
    """
    params = read_params()
    overrides = params.get("overrides") or {}
    store = ConfigStore.instance()
    # From here on a key that no file of conf/ has is an error instead of a new key.
    store.store("strict", DictConfig({}, flags={"struct": True}), package="_global_")
    defaults: list[Any] = [{"/experiment": params["experiment"]}] if params.get("experiment") is not None else []
    defaults.append("strict")
    defaults += [{f"override /{group}": params[group]} for group in groups() if params.get(group) is not None]
    defaults.append("_self_")
    seed = {} if params.get("seed") is None else {"seed": params["seed"]}
    store.store("choices", OmegaConf.create({"defaults": defaults, **overrides, **seed}), package="_global_")


def read_params() -> dict[str, Any]:
    """The content of params.yaml, its keys checked."""
    if not CONF.is_dir() or not PARAMS.is_file():
        raise Refusal(f"There is no {CONF}/ or no {PARAMS} in {Path.cwd()}: run this from the project's root folder.")
    try:
        params = yaml.safe_load(PARAMS.read_text())
    except yaml.YAMLError as error:
        raise Refusal(f"{PARAMS} is no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(params, dict):
        raise Refusal(f"{PARAMS} must be a mapping that names an experiment, such as `experiment: tutorial`.")
    _refuse_unknown(params)
    return params


def _refuse_unknown(params: dict[str, Any]) -> None:
    allowed = ["experiment", "seed", *groups(), "overrides"]
    for key, value in params.items():
        if key not in allowed:
            raise Refusal(f"{PARAMS}: nothing reads the key `{key}`; {nearest(str(key), allowed)}")
        if key not in ("seed", "overrides") and value is not None and not isinstance(value, str):
            raise Refusal(f"{PARAMS}: `{key}` names a file of {CONF}/{key}/, which {value!r} is not.")
    overrides = params.get("overrides") or {}
    if not isinstance(overrides, dict):
        raise Refusal(
            f"{PARAMS}: `overrides` must be a mapping such as {{optimizer: {{lr: 0.002}}}}, not {overrides!r}."
        )
    for key, value in overrides.items():
        if key in groups() and not isinstance(value, dict):
            raise Refusal(
                f"{PARAMS}: `overrides.{key}: {value}` is a choice; write `{key}: {value}` above `overrides`."
            )


def nearest(word: str, allowed: list[str]) -> str:
    """What to write instead of `word`: the nearest of the allowed words, or all of them."""
    close = get_close_matches(word, allowed, n=1)
    return f"did you mean `{close[0]}`?" if close else f"allowed are {', '.join(allowed)}."
