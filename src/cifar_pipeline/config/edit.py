"""params.yaml changed by a program, with its comments left as they are."""

from typing import Any

import yaml
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from ruamel.yaml import YAML

from cifar_pipeline.config.compose import compose_config
from cifar_pipeline.config.params import PARAMS, is_params_key
from cifar_pipeline.config.schema import validate
from cifar_pipeline.config.validation import format_error
from cifar_pipeline.utils.atomic import atomic_write, require_writable
from cifar_pipeline.utils.errors import UserError


def choose(settings: list[str]) -> None:
    """Write settings such as `optimizer=adam` and `optimizer.lr=0.002` into params.yaml.

    Raises `Refusal`, and leaves the file alone, where they don't make a configuration.
    """
    require_writable(PARAMS, is_file=True)
    try:
        validate(compose_config(settings))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(format_error(error)) from None
    form = YAML()
    form.width = 120
    form.representer.add_representer(
        type(None), lambda this, _: this.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    params = form.load(PARAMS)
    for setting in settings:
        key, _, text = setting.lstrip("+").partition("=")
        _set(params, key if is_params_key(key) else f"overrides.{key}", yaml.safe_load(text))
    with atomic_write(PARAMS) as part:
        form.dump(params, part)


def _set(node: Any, key: str, value: Any) -> None:
    head, _, rest = key.partition(".")
    if rest:
        if not node.get(head):
            node[head] = {}
        _set(node[head], rest, value)
    else:
        node[head] = value
