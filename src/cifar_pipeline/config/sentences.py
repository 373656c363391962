"""Hydra's and OmegaConf's errors, told in one sentence that says what to write instead."""

import re
from difflib import get_close_matches

from hydra.errors import MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cifar_pipeline.config.choices import nearest


def sentence(error: BaseException) -> str:
    """What is wrong and what to write instead, from a refusal or from an error of Hydra or OmegaConf."""
    if isinstance(error, MissingConfigException):
        return _unknown_option(error)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OmegaConfBaseException) and "is not in struct" in str(cause):
            return _unknown_key(cause)
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split())


def _unknown_option(error: MissingConfigException) -> str:
    if not error.missing_cfg_file or not error.options:
        return " ".join(str(error).split())
    group, _, option = error.missing_cfg_file.rpartition("/")
    group = group.strip("/")
    return f"{group}={option}: conf/{group}/ has no {option}.yaml; {nearest(option, sorted(error.options))}"


def _unknown_key(error: OmegaConfBaseException) -> str:
    full_key = str(error.full_key)
    key = full_key.rpartition(".")[2]
    parent = error.parent_node
    siblings = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
    target = parent.get("_target_") if isinstance(parent, DictConfig) and "_target_" in siblings else None
    of = f" (the option chosen is {target})" if target else ""
    close = get_close_matches(key, siblings, n=1)
    names = [name for name in siblings if not re.fullmatch(r"_\w+_", name) and name != "hydra"]
    instead = f"did you mean `{full_key[: -len(key)]}{close[0]}`?" if close else f"allowed are {', '.join(names)}."
    return f"{full_key}: no file of conf/ has this key{of}; {instead}"
