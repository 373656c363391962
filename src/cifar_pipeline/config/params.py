"""Read params.yaml and add it to Hydra's defaults list, as the config `params` that conf/config.yaml lists last."""

import math
import re
import shlex
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.safe_io import require_bounded
from cifar_pipeline.utils.text import compose_characters, flatten_dict, list_names, one_line

CONF = Path("conf")
PARAMS = Path("params.yaml")
# `model.weights`: those that the network's library publishes; and how the address of a model in MLflow begins.
DEFAULT_WEIGHTS, MLFLOW_SCHEMES = "default", ("models:/", "runs:/")
# Groups that only a sweep (`-m`) reads: its trials, how a search proposes and stops them, the launcher that runs them.
SEARCH_GROUPS = ("sampler", "pruner")
SWEEP_GROUPS = ("sweep", *SEARCH_GROUPS, "launcher")
# The folder of conf/ with the settings of this machine (`config/local_settings.py`), which is no group.
LOCAL_FOLDER = "local"
# Groups that are not part of a training's configuration. params.yaml has a key of its own for `experiment`.
NON_PARAM_GROUPS = ("experiment", *SWEEP_GROUPS, LOCAL_FOLDER)
# Groups whose options all have the same keys, so that an experiment's values suit each of them.
SHARED_GROUPS = {"trainer", "data"}
# Groups from which several options can be chosen, and those of them whose files hold one entry with the file's name.
SINGLE_ENTRY_GROUPS = ("callbacks", "metrics", "logger")
LIST_GROUPS = ("augmentation", *SINGLE_ENTRY_GROUPS)
# Folders of the project that hold results, of which DVC lets no other stage depend on a part.
OUTPUTS = ("data/raw", "data/processed", "models", "reports")
# Keys without a group that params.yaml sets directly.
TOP_LEVEL_KEYS = ("seed", "monitor", "mode", "image_dir")
# Arguments of Lightning's Trainer that the pipeline sets itself, and its MLflow logger, with what to use instead.
OTHER_PLACES = {
    "logger=mlflow": "MLflow always logs, and logger=[csv,tensorboard,wandb] adds others",
    "hydra/sweeper=optuna": "choose sweep=search, or hydra/sweeper=optuna4 with sampler=tpe",
    "hydra.launcher.n_jobs": "launcher=joblib runs several trials at a time",
    "hydra.sweeper.direction": "a search follows monitor and mode",
    "hydra.sweeper.sampler": "only a search has a sampler; add sweep=search",
    "hydra.sweeper.pruner": "only a search has a pruner; add sweep=search",
} | {
    f"trainer.{name}": instead
    for name, instead in {
        "accelerator": "write runtime.accelerator",
        "precision": "choose precision=bf16 or fp32, or write precision.cpu, precision.cuda or precision.mps",
        "logger": f"choose logger=[tensorboard] or another option of {CONF}/logger/; MLflow always logs",
        "callbacks": f"choose callbacks=[early_stopping] or another option of {CONF}/callbacks/",
        "profiler": "write runtime.profiler=simple or pytorch",
        "log_every_n_steps": "write runtime.log_every_n_steps",
        "limit_test_batches": "`evaluate` measures the whole test split",
        "limit_predict_batches": "predict.py predicts the images that it is given",
        "enable_checkpointing": "checkpoints are always written; runtime.checkpoint_interval_seconds says how often",
        "enable_progress_bar": "the option -q hides the progress bar",
        "enable_model_summary": "choose callbacks=[rich_summary]",
        "use_distributed_sampler": "each process already gets its share of every batch",
        "sync_batchnorm": "batch norm is synchronized whenever several GPUs train",
        "barebones": "runtime.engine=compiled avoids Lightning's overhead",
        "plugins": "use trainer.strategy and the group precision",
        "default_root_dir": "checkpoints are in .cache/trainings, and models in models/",
        "model_registry": "`python src/registry.py promote` registers models, by the keys of registry",
    }.items()
}


def groups() -> list[str]:
    """Return the names of the groups of conf/ from which params.yaml can choose an option."""
    return sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in NON_PARAM_GROUPS)


def is_params_key(key: str) -> bool:
    """Whether params.yaml has this key at its top level."""
    return key in ("experiment", *TOP_LEVEL_KEYS, *groups())


def register_params() -> None:
    """Register params.yaml in Hydra's ConfigStore, so that a stage composes the same configuration however it starts.

    Raises UserError if params.yaml is missing, is not valid YAML, or has an unknown key.
    """
    OmegaConf.register_new_resolver("stored_size", stored_size, replace=True)
    params = read_params()
    overrides = params.get("overrides") or {}
    store = ConfigStore.instance()
    # The struct flag makes a key that no file of conf/ has an error instead of a new key.
    # Tags of a run may have any names.
    tags = DictConfig({}, flags={"struct": False})
    store.store("struct", DictConfig({"mlflow": {"tags": tags}}, flags={"struct": True}), package="_global_")
    # `experiment: null` composes the groups alone, and the command line can still choose an experiment.
    defaults: list[Any] = [{"/experiment": params.get("experiment")}, "struct"]
    defaults += [{f"override /{group}": params[group]} for group in groups() if params.get(group) is not None]
    defaults.append("_self_")
    values = {key: params[key] for key in TOP_LEVEL_KEYS if params.get(key) is not None}
    store.store("params", OmegaConf.create({"defaults": defaults, **overrides, **values}), package="_global_")


def stored_size(default: int, margin: float, *, _root_: DictConfig) -> int:
    """Return the size in pixels at which images are stored for the configured network: for `data.size` in conf/data/.

    It is `margin` times `model.input_size`, or times the size at which the published weights of the network were
    trained; with neither it is `default`. Raises UserError if the network has no published weights.
    """
    model = _root_.model
    if model.get("input_size") is not None:
        return round(int(model.input_size) * margin)
    if model.get("weights") is None or model.get("default_weights") is None:
        return default
    weights: Any = instantiate(model.default_weights, name=model.name)
    size: int = weights.input_size
    return round(size * margin)


def read_params() -> dict[str, Any]:
    """Read params.yaml and check its keys. Raises UserError if it is missing or invalid."""
    if not CONF.is_dir() or not PARAMS.is_file():
        raise UserError(f"{Path.cwd()} has no {CONF}/ or no {PARAMS}: run this from the project's root folder.")
    try:
        # Read as Hydra reads conf/: 1e-3 is a number, and a duplicate key is an error.
        text = PARAMS.read_text(encoding="utf-8")
        require_bounded(text, str(PARAMS))
        params = OmegaConf.to_container(OmegaConf.load(PARAMS))
    except yaml.YAMLError as error:
        raise UserError(describe_yaml_error(error)) from None
    except OSError as error:
        if error.errno is not None:
            raise
        params = None  # OmegaConf raises an OSError without a number for a file that holds a single value.
    if not isinstance(params, dict) or not params:
        raise UserError(f"{PARAMS} must be a mapping that names an experiment, such as `experiment: tutorial`.")
    _check_keys(params)
    _reject_ambiguous_values(params, text)
    return {str(key): value for key, value in params.items()}


def _reject_ambiguous_values(params: dict[Any, Any], text: str) -> None:
    """Refuse values that DVC, which reads and writes this file as YAML 1.2, takes for others than Hydra (YAML 1.1).

    Also those of `image_dir` that only Hydra can read, because dvc.yaml has its value too.
    """
    try:
        known = flatten_dict(YAML(typ="safe", pure=True).load(text))
    except (MarkedYAMLError, ValueError):
        return
    for key, value in flatten_dict({str(key): value for key, value in params.items()}).items():
        other = known.get(key, value)
        if to_yaml_inline(value) != to_yaml_inline(other) and str(value) != str(other):
            words = [f"`{key.rpartition('.')[2]}: {to_yaml_inline(read)}`" for read in (str(other), value)]
            raise UserError(
                f"{PARAMS}: {key} is {to_yaml_inline(value)} for Hydra, but {to_yaml_inline(other)} for DVC: write "
                f"{' or '.join(words)}."
            )
    image_dir = params.get("image_dir", "images")
    if image_dir is None or "${" in str(image_dir):
        shown = to_yaml_inline(image_dir)
        raise UserError(
            f"{PARAMS}: `image_dir: {shown}` has no value for DVC: write the path, such as `image_dir: images`."
        )


def image_dir_problem(path: str) -> str:
    """Say why DVC cannot watch this folder as `image_dir`; empty if it can."""
    if path.startswith("~"):
        full = Path(path).expanduser() if path.startswith("~/") else "/..."
        return f"DVC does not know `~`; write the whole path, `image_dir: {full}`"
    folder, root = Path(path).resolve(), Path.cwd().resolve()
    if root.is_relative_to(folder):
        return "this folder contains the whole project; choose one that holds images only"
    for output in OUTPUTS:
        if (root / output).is_relative_to(folder) or folder.is_relative_to(root / output):
            return f"this folder holds or is in {output}/, which the pipeline writes; choose another one"
    if not folder.exists() and folder.parent.is_dir():
        name = compose_characters(folder.name)
        if any(compose_characters(other.name) == name for other in folder.parent.iterdir()):
            return "the folder's name has the same characters in another Unicode form; rename it as it is written here"
    return ""


def describe_yaml_error(error: yaml.YAMLError) -> str:
    """Describe a YAML syntax error in one sentence, with file and line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return f"A configuration file is not valid YAML: {one_line(error)}."
    path = Path(mark.name)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{shown}, line {mark.line + 1}, is not valid YAML: {problem}."


def _check_keys(params: Mapping[Any, Any]) -> None:
    allowed = ["experiment", *TOP_LEVEL_KEYS, *groups(), "overrides"]
    for key, value in params.items():
        if key not in allowed:
            raise UserError(f"{PARAMS}: unknown key `{key}`; {suggest(str(key), allowed)}")
        names = value if key in LIST_GROUPS and isinstance(value, list) else [value]
        is_named = all(isinstance(name, str) for name in names) or value is None
        if key not in (*TOP_LEVEL_KEYS, "overrides") and not is_named:
            raise UserError(
                f"{PARAMS}: `{key}` must be the name of a file in {CONF}/{key}/, not {to_yaml_inline(value)}."
            )
    overrides = params.get("overrides") or {}
    if not isinstance(overrides, dict):
        raise UserError(
            f"{PARAMS}: `overrides` must be a mapping such as {{optimizer: {{lr: 0.002}}}}, "
            f"not {to_yaml_inline(overrides)}."
        )
    for key, value in overrides.items():
        if key in allowed and not isinstance(value, dict):
            raise UserError(
                f"{PARAMS}: `{key}` is a top-level key; write `{key}: {to_yaml_inline(value)}` there "
                "instead of in `overrides`."
            )


def reject_invalid_group_overrides(arguments: list[str]) -> None:
    """Refuse `optimizer=3`, `optimizer=null` or `optimizer=[]`, for which Hydra has no readable error.

    Args:
        arguments: the command line's.
    """
    number = r"[-+]?([\d._]+(e[-+]?\d+)?|inf|nan)"
    scalar, container = re.compile(rf"null|true|false|{number}", re.IGNORECASE), ("[", "{")
    for argument in arguments:
        key, _, option = argument.partition("=")
        group, shown = key.lstrip("+~"), one_line(argument)
        if not group:
            raise UserError(f"{shown or 'An empty argument'}: no key; write key=value.")
        is_group = group in (*NON_PARAM_GROUPS, *groups())
        if group in LIST_GROUPS and option.startswith("["):
            continue
        if is_group and (option.startswith(container) or scalar.fullmatch(option)):
            raise UserError(f"{shown}: {CONF}/{group}/ has no file of this name; {suggest(option, options(group))}")


def reject_values_of_other_options(chosen: Mapping[str, str]) -> None:
    """Refuse an option other than the experiment's in a group whose values the experiment sets.

    Muon's learning rate, for example, would silently be applied to Adam.

    Args:
        chosen: the option of each group, `experiment` among them.
    """
    experiment = chosen.get("experiment", "None")
    if experiment in ("None", ""):
        return
    expected, keys = _experiment_values(experiment)
    for group in sorted(set(keys) & set(expected) - SHARED_GROUPS - {*LIST_GROUPS}):
        option = chosen.get(group)
        if option != expected[group]:
            names, expected_option = " and ".join(f"{group}.{key}" for key in keys[group]), f"{group}={expected[group]}"
            raise UserError(
                f"{group}={option} does not fit experiment={experiment}, which sets {names} for {expected_option}; "
                f"choose another experiment, such as tutorial, or keep {expected_option}."
            )


def _experiment_values(name: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return the option that an experiment chooses for each group, and each group's keys that it sets values for."""
    expected: dict[str, str] = {}
    keys: dict[str, list[str]] = {}
    path = CONF / "experiment" / f"{name.removesuffix('.yaml')}.yaml"
    content = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else None
    if not isinstance(content, dict):
        return expected, keys
    for entry in content.get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            parent_options, parent_keys = _experiment_values(entry)
            expected |= parent_options
            keys |= parent_keys
        elif isinstance(entry, dict):
            expected |= {key.removeprefix("override ").removeprefix("/"): option for key, option in entry.items()}
    for group in groups():
        if isinstance(content.get(group), dict):
            keys[group] = list(dict.fromkeys([*keys.get(group, []), *content[group]]))
    return expected, keys


def check_entry_names(group: str) -> None:
    """Raise UserError for a file of callbacks, metrics or logger whose entry has another name than the file.

    Two chosen files with entries of one name would be merged into one.
    """
    for path in sorted((CONF / group).glob("*.yaml")):
        content = OmegaConf.load(path)
        if isinstance(content, DictConfig) and "defaults" not in content and [*content] != [path.stem]:
            entries = list_names(content) or "none"
            raise UserError(f"{path} must hold one entry with the file's name, `{path.stem}:`; it has {entries}.")


def options(group: str) -> list[str]:
    """Return the names of a group's options."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def named_if_in_params(key: str, value: Any = ...) -> str:
    """Return "params.yaml: " if it sets this key to this value (by default any), else "": it begins an error message.

    A value that `dvc exp run -S` has written there makes commands fail whose command line does not have it.
    """
    try:
        params = read_params()
    except UserError:
        return ""
    overrides = params.pop("overrides", None)
    nested = flatten_dict(overrides) if isinstance(overrides, Mapping) else {}
    values = [source[key] for source in (params, nested) if key in source]
    found = any(value in (entry, ...) or (isinstance(entry, list) and value in entry) for entry in values)
    return f"{PARAMS}: " if found else ""


def suggest(word: str, allowed: list[str]) -> str:
    """Return the end of an error message: the closest allowed word, or all of them."""
    close = get_close_matches(word, allowed, n=1)
    return f"did you mean `{close[0]}`?" if close else f"allowed are {list_names(allowed)}."


def params_values(values: dict[str, str]) -> dict[str, str]:
    """Map each key of params.yaml to its new value as YAML, `overrides` with those that params.yaml has already.

    Args:
        values: by dotted key, as on a command line: in Hydra's grammar, in which `no`, `0x10` and `12:30` are text.
    """
    parsed = {key: OverridesParser.create().parse_override(f"{key}={text}").value() for key, text in values.items()}
    params = {key: to_yaml_inline(value) for key, value in parsed.items() if is_params_key(key)}
    if params.keys() != parsed.keys():
        merged = OmegaConf.create(read_params().get("overrides") or {})
        for key, value in parsed.items():
            if key not in params:
                OmegaConf.update(merged, key, value, merge=not isinstance(value, dict), force_add=True)
        params["overrides"] = to_yaml_inline(OmegaConf.to_container(merged))
    return params


def format_override(key: str, value: str) -> str:
    """Return `key=value` as one word of a shell, in which Hydra reads the value as text."""
    if not _is_hydra_text(value):
        value = QuotedString(text=value, quote=Quote.double).with_quotes()
    return shlex.quote(f"{key}={value}")


def _is_hydra_text(text: str) -> bool:
    """Return whether Hydra's grammar reads this text, without quotes, as itself."""
    try:
        override = OverridesParser.create().parse_override(f"key={text}")
        return not override.is_sweep_override() and override.value() == text
    except HydraException:
        return False


# Words that some readers of YAML take for null, true or false, and numbers of one version of YAML or the other.
YAML_WORDS = re.compile(r"(?i)null|~|true|false|yes|no|on|off|y|n|[-+]?0o[0-7_]+")
PLAIN_TEXT = re.compile(r"[A-Za-z_][\w./-]*", re.ASCII)


def to_yaml_inline(value: Any) -> str:
    """Format a value in YAML's flow style, so that OmegaConf, DVC (YAML 1.2) and PyYAML (1.1) read the same type."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{to_yaml_inline(key)}: {to_yaml_inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_yaml_inline, value)) + "]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, float):
        return yaml.safe_dump(value).splitlines()[0]
    if not isinstance(value, str):
        return repr(value)
    if not value:
        return "''"
    if _is_yaml_text(value):
        return value
    quoted: str = yaml.safe_dump(value, default_style='"', allow_unicode=True, width=math.inf)
    return quoted.strip()


def _is_yaml_text(text: str) -> bool:
    """Return whether every reader of YAML takes this text, without quotes and in any place, for itself."""
    if YAML_WORDS.fullmatch(text) or not re.match(r"[\w/.$+(]", text):
        return False
    if PLAIN_TEXT.fullmatch(text):
        return True
    try:
        return bool(
            yaml.safe_load(f"{{key: {text}}}") == {"key": text}
            and OmegaConf.to_container(OmegaConf.create(f"{{key: {text}}}")) == {"key": text}
        )
    except (yaml.YAMLError, OmegaConfBaseException, ValueError):
        return False
