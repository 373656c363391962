"""Read the settings of this machine: conf/local/default.yaml, and the environment variables in .env.

Both files are optional, ignored by git and DVC, and read in the main workspace, also where DVC runs a stage in a
temporary copy without them. They cannot change a result: composed.yaml and fingerprints are the same on every machine.
Variables that are set already have priority over .env, and .env over the paths in conf/local/default.yaml. The values
in .env are secrets: no text that leaves the process contains them.
"""

import io
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from dotenv import dotenv_values
from dotenv.parser import parse_stream
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from cifar_pipeline.config.params import (
    CONF,
    LOCAL_FOLDER,
    OTHER_PLACES,
    SWEEP_GROUPS,
    TOP_LEVEL_KEYS,
    describe_yaml_error,
    groups,
    options,
    register_params,
    suggest,
    to_yaml_inline,
)
from cifar_pipeline.config.tracking_uri import TRACKING_VARIABLE
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.paths import main_workspace
from cifar_pipeline.utils.safe_io import require_bounded
from cifar_pipeline.utils.text import add_secrets, declared_in, flatten_dict, list_names

FILE, ENV_FILE = CONF / LOCAL_FOLDER / "default.yaml", Path(".env")
# The option of conf/launcher/ that this file's `launcher` becomes, with the values of `hydra.launcher`.
LAUNCHER_OPTION = "conf_local"
# Groups and keys that the file may set; they cannot change a result.
GROUPS = ("runtime", "mlflow", "predict", "serve")
KEYS = ("trainer.strategy", "trainer.devices", "trainer.num_nodes")
HYDRA_KEYS = re.compile(r"hydra\.launcher\.(?!_target_$).+|hydra\.sweep\.(dir|subdir)")
CHOICES, PATHS = ("launcher", "logger"), "paths"
TRACKING_PATH = "tracking_uri"
VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def register_configs() -> None:
    """Register params.yaml and the settings of this machine in Hydra's ConfigStore.

    Raises UserError if either is invalid.
    """
    register_params()
    settings = read_settings()
    defaults: list[Any] = ["_self_"]
    store = ConfigStore.instance()
    values = {key: value for key, value in settings.items() if key not in (*CHOICES, PATHS)}
    if logger := settings.get("logger"):
        defaults.append({"override /logger": logger})
    if launcher := settings.get("launcher"):
        # An option of its own, so that another launcher on the command line does not get the values of this one.
        hydra = dict(values.pop("hydra", {}))
        preset = {"defaults": [launcher, "_self_"], "hydra": {"launcher": hydra.pop("launcher", None) or {}}}
        store.store(LAUNCHER_OPTION, OmegaConf.create(preset), group="launcher", package="_global_")
        defaults.append({"override /launcher": LAUNCHER_OPTION})
        values |= {"hydra": hydra} if hydra else {}
    store.store("local_settings", OmegaConf.create({"defaults": defaults, **values}), package="_global_")


def load_environment() -> bool:
    """Set the variables of .env and of the paths in conf/local/default.yaml that the environment lacks.

    Returns whether there are any. Raises UserError if one of the files is invalid.
    """
    secrets = _read_env_file()
    add_secrets(secrets)
    variables = dict(_path_variables(read_settings().get(PATHS, {}))) | secrets
    for name, value in variables.items():
        os.environ.setdefault(name, value)
    return bool(variables)


def reject_secrets_in(config: DictConfig) -> None:
    """Raise UserError if a value of the configuration contains one of .env, so that it would be masked in results.

    Values that read the variable itself (`${oc.env:NAME}`) may.
    """
    raw, resolved = (OmegaConf.to_container(config, resolve=resolve) for resolve in (False, True))
    assert isinstance(raw, dict) and isinstance(resolved, dict)
    written = flatten_dict({str(key): value for key, value in raw.items()})
    for key, value in flatten_dict({str(key): value for key, value in resolved.items()}).items():
        for name in declared_in(str(value)):
            if f"oc.env:{name}" not in str(written.get(key)):
                raise UserError(
                    f"{key} contains the value of {name} in {ENV_FILE}, which is masked as a secret everywhere: if it "
                    f"is none, set {name} in the shell instead."
                )


def read_settings() -> dict[str, Any]:
    """Read conf/local/default.yaml, which need not exist, and check its keys. Raises UserError if it is invalid."""
    path = settings_file()
    if not os.path.lexists(path):
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        require_bounded(text, str(FILE))
        content = OmegaConf.to_container(OmegaConf.load(path)) if text.strip() else {}
    except yaml.YAMLError as error:
        raise UserError(describe_yaml_error(error)) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{FILE}, line {_line(error)}, is not UTF-8: save the file as UTF-8.") from None
    except OSError as error:
        if error.errno is not None:
            raise UserError(f"{FILE} cannot be read ({(error.strerror or '').lower()}).") from None
        content = None  # OmegaConf raises an OSError without a number for a file that holds a single value.
    if not isinstance(content, dict):
        raise UserError(f"{FILE} must be a mapping, such as `runtime: {{threads: 2}}`.")
    settings = {str(key): value for key, value in content.items()}
    _check(settings)
    return {key: value for key, value in settings.items() if value is not None}


def settings_file() -> Path:
    """Return the path of the file with this machine's settings."""
    return main_workspace() / FILE


def env_file() -> Path:
    """Return the path of the file with this machine's environment variables."""
    return main_workspace() / ENV_FILE


def _check(settings: Mapping[str, Any]) -> None:
    if "defaults" in settings:
        raise UserError(f"{FILE}: `defaults` is not read here: write `launcher: joblib` or `logger: [tensorboard]`.")
    for name in CHOICES:
        _check_choice(name, settings.get(name))
    for key, value in flatten_dict({key: value for key, value in settings.items() if key not in CHOICES}).items():
        _check_key(key, value)
    if "launcher" in (settings.get("hydra") or {}) and "launcher" not in settings:
        raise UserError(f"{FILE}: the values of hydra.launcher are those of one launcher: add `launcher: NAME`.")


def _check_choice(name: str, value: Any) -> None:
    names = value if isinstance(value, list) and name == "logger" else [value] if value is not None else []
    for word in names:
        if not isinstance(word, str):
            raise UserError(
                f"{FILE}: `{name}` must be the name of a file in {CONF}/{name}/, not {to_yaml_inline(word)}."
            )
        if word not in options(name):
            raise UserError(f"{FILE}: {CONF}/{name}/ has no {word}; {suggest(word, options(name))}")


def _check_key(key: str, value: Any) -> None:
    """Raise UserError for a key that does not exist, or that would change results."""
    group, _, name = key.partition(".")
    if group == PATHS and name:
        _check_path(name, value)
        return
    if key in KEYS or HYDRA_KEYS.fullmatch(key):
        return
    if group in GROUPS and name:
        # Tags have any names.
        if not name.startswith("tags.") and name not in (keys := _keys(group)):
            raise UserError(f"{FILE}: {group} has no key `{name}`; {suggest(name, keys)}")
        return
    allowed = [*CHOICES, *GROUPS, *KEYS, "hydra.launcher", "hydra.sweep", PATHS]
    if key in (*GROUPS, "trainer", "hydra", "hydra.launcher", "hydra.sweep", PATHS):
        if value is None:
            return
        raise UserError(f"{FILE}: `{key}` must be a mapping of its keys, not {to_yaml_inline(value)}.")
    if key == "image_dir":
        raise UserError(f"{FILE}: `image_dir` is also read by dvc.yaml: set it in params.yaml, or make it a link.")
    if instead := OTHER_PLACES.get(key):
        raise UserError(f"{FILE}: {key} is not a key: {instead}.")
    if group in (*groups(), *TOP_LEVEL_KEYS, *SWEEP_GROUPS, "rerun", "experiment", "overrides"):
        raise UserError(
            f"{FILE}: {key} must be the same on every machine: set it in params.yaml or on the command line; this file "
            f"has {list_names(allowed, total=len(allowed))}."
        )
    raise UserError(f"{FILE}: unknown key `{key}`; {suggest(key, allowed)}")


def _keys(group: str) -> list[str]:
    """Return the keys in the files of a group."""
    content = [OmegaConf.to_container(OmegaConf.load(path), resolve=False) for path in (CONF / group).glob("*.yaml")]
    return sorted({str(key) for values in content if isinstance(values, dict) for key in values})


def _check_path(name: str, value: Any) -> None:
    allowed = [TRACKING_PATH, *_downloaded()]
    if name not in allowed:
        raise UserError(f"{FILE}: {PATHS} has no key `{name}`; {suggest(name, allowed)}")
    if value is not None and (not isinstance(value, str) or not value):
        raise UserError(f"{FILE}: {PATHS}.{name} must be a path or a URL, not {to_yaml_inline(value)}.")


def _downloaded() -> list[str]:
    """Return the data sets that are downloaded, of which a machine may have a copy."""
    return [path.stem for path in sorted((CONF / "data").glob("*.yaml")) if "mirrors" in OmegaConf.load(path)]


def _path_variables(paths: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the environment variable that stands for each path, and its value."""
    for name, value in paths.items():
        if value is None:
            continue
        if name == TRACKING_PATH:
            yield TRACKING_VARIABLE, value
        else:
            is_url = "://" in value
            yield f"{name.upper()}_SOURCE", value if is_url else str(main_workspace() / Path(value).expanduser())


def _read_env_file() -> dict[str, str]:
    """Read the variables of .env. Raises UserError, without the content, if the file cannot be read."""
    path = env_file()
    if not os.path.lexists(path):
        return {}
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except IsADirectoryError:
        raise UserError(
            f"{ENV_FILE} is a folder, but it must be a file with lines NAME=value: rename the folder."
        ) from None
    except OSError as error:
        raise UserError(
            f"{ENV_FILE} cannot be read ({(error.strerror or '').lower()}): make it readable for you, or remove it."
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{ENV_FILE}, line {_line(error)}, is not UTF-8: save the file as UTF-8.") from None
    for binding in parse_stream(io.StringIO(text)):
        is_valid = not binding.error and (binding.key is None or _is_variable(binding.key, binding.value))
        if not is_valid:
            skipped = re.match(r"\s*", binding.original.string)
            line = binding.original.line + (skipped[0].count("\n") if skipped else 0)
            raise UserError(
                f"{ENV_FILE}, line {line}, is not NAME=value: correct it; a value with spaces, # or quotes needs "
                "quotes around it, and a comment begins with #."
            )
    return {name: value or "" for name, value in dotenv_values(stream=io.StringIO(text)).items()}


def _is_variable(name: str, value: str | None) -> bool:
    return VARIABLE.fullmatch(name) is not None and value is not None and "\0" not in value


def _line(error: UnicodeDecodeError) -> int:
    return error.object.count(b"\n", 0, error.start) + 1
