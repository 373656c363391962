"""Check `_target_`s and settings of Hydra in a configuration, and format Hydra's errors as one sentence.

`check_targets` imports the classes and functions that `_target_`s name, compares their arguments with the option's keys
and builds the cheap ones once. `format_error` turns an error of the composition into a sentence with the fix.
`parse_arguments` and `check_settings` refuse settings of Hydra (`hydra.job.chdir`) that break a command or have no
effect: most of them move or rename files that the pipeline reads in fixed places, or are set by Hydra itself.
"""

import argparse
import errno
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    MissingConfigException,
    OverrideParseException,
)
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError
from yaml import YAMLError

from cifar_pipeline.config.params import (
    CONF,
    LIST_GROUPS,
    OTHER_PLACES,
    PARAMS,
    SWEEP_GROUPS,
    describe_yaml_error,
    format_override,
    named_if_in_params,
    options,
    read_params,
    suggest,
    to_yaml_inline,
)
from cifar_pipeline.config.schema import field_schemas
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import flatten_dict, list_names, one_line

# Errors of paths that cannot exist, or that are of another type than is needed.
PATH_ERRNOS = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP}
# Groups whose options are separate packages such as hydra-joblib-launcher, and the ending of the package names.
PLUGINS = {"hydra/launcher": "launcher", "hydra/sweeper": "sweeper"}
# Hydra's message for an unknown option in a list such as callbacks=[a,b].
COULD_NOT_LOAD = re.compile(r"Could not load '(\w+)/([^']+)'")
# Hydra's message for a comma in a single run, and the keys of overrides.
AMBIGUOUS, TYPED_KEY = re.compile(r"Ambiguous value for argument '(.*)'$", re.MULTILINE), re.compile(r"[+~]*[\w./@-]+")
# Extras in pyproject.toml that install the plugins of conf/.
EXTRAS = {"joblib": "launchers", "submitit": "launchers", "ray": "ray"}
# Extras whose packages do not fit the versions in constraints.txt.
UNPINNED_EXTRAS = ("ray",)


def install_command(extra: str) -> str:
    """Return the command that installs an extra of pyproject.toml."""
    constraint = "" if extra in UNPINNED_EXTRAS else "--constraint constraints.txt "
    return f"pip install {constraint}--editable '.[{extra}]'"


def find_user_error(error: BaseException | None) -> UserError | None:
    """Return the UserError in an error's chain of causes: Hydra wraps the errors of a constructor into its own.

    OmegaConf wraps those of an interpolation, and names them as its context only. A text that is not UTF-8, from an
    argument, a variable or a file name, is a mistake of the user as well, and so are a path that cannot exist and a
    configuration file in another encoding.
    """
    while error is not None and not isinstance(error, UserError):
        if isinstance(error, OSError) and error.errno in PATH_ERRNOS and error.filename:
            return UserError(
                f"{error.filename} cannot be used ({(error.strerror or '').lower()}): write another path, or move what "
                "is in the way."
            )
        if isinstance(error, UnicodeDecodeError) and (location := _find_undecodable()):
            return UserError(f"{location}, is not UTF-8: save the file as UTF-8.")
        if isinstance(error, UnicodeEncodeError) and error.encoding == "utf-8":
            return UserError(
                f"{error.object} is not UTF-8, which databases and text files need: write it in UTF-8, "
                "or rename the file or folder."
            )
        error = error.__cause__ or (error.__context__ if isinstance(error, OmegaConfBaseException) else None)
    return error


def _find_undecodable() -> str:
    """Return the first configuration file that is not UTF-8, and its line; empty if all are."""
    for path in (PARAMS, *sorted(CONF.rglob("*.yaml"))):
        content = path.read_bytes() if path.is_file() else b""
        try:
            content.decode()
        except UnicodeDecodeError as error:
            return f"{path}, line {content.count(bytes([10]), 0, error.start) + 1}"
    return ""


def format_error(error: BaseException) -> str:
    """Format a UserError, or an error of Hydra, OmegaConf or YAML, as one sentence with the fix."""
    if user_error := find_user_error(error):
        return str(user_error)
    if isinstance(error, YAMLError):
        return describe_yaml_error(error)
    if match := COULD_NOT_LOAD.search(str(error)):
        return _no_such_file(match[1], match[2], options(match[1]))
    if isinstance(error, MissingConfigException):
        return _unknown_option(error)
    if match := AMBIGUOUS.match(str(error)):
        return _ambiguous_override(match[1])
    if isinstance(error, OverrideParseException):
        return _unreadable_override(error)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.full_key:
            return _unknown_key(cause)
        if isinstance(cause, ValidationError) and cause.full_key:
            return f"{cause.full_key}: {str(cause).splitlines()[0].rstrip('.')}."
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {str(error).splitlines()[0]}."
    return f"{one_line(error).rstrip('.')}."


def takes_text(key: str, text: str) -> bool:
    """Return whether a key may have a text such as this one; True for a key that is not declared."""
    schema = field_schemas().get(key, {"type": "string"})
    return any(
        entry.get("type") == "string"
        and not {"enum", "const"} & entry.keys()
        and re.search(entry.get("pattern", ""), text)
        for entry in schema.get("anyOf", [schema])
    )


def _unreadable_override(error: OverrideParseException) -> str:
    """Describe an override that Hydra's grammar cannot read, with the quoted form if its key takes text."""
    key, _, value = error.override.partition("=")
    shown = one_line(error.override)
    if value.startswith("~/") and TYPED_KEY.fullmatch(key):
        return f"{shown}: Hydra does not know `~`; write {format_override(key, str(Path(value).expanduser()))}."
    if value and TYPED_KEY.fullmatch(key) and ("${" in value or takes_text(key.lstrip("+~"), value)):
        return f"{shown}: Hydra needs quotes around such text; write {format_override(key, value)}."
    # The last line is a link to Hydra's grammar.
    reason = one_line(" ".join((error.message or "").splitlines()[:-1]))
    if reason.startswith("LexerNoViableAlt"):
        reason = "Hydra cannot read one of its characters without quotes"
    return f"{shown}: {reason}; write key=value."


def _ambiguous_override(word: str) -> str:
    """Describe a comma outside of a sweep: alternatives of a sweep, or part of a text."""
    key, _, value = word.partition("=")
    text = f", or {format_override(key, value)} for text" if takes_text(key.lstrip("+~"), value) else ""
    return (
        f"{one_line(word)}: a comma separates the trials of a sweep: add --multirun, or write [...] for a list{text}."
    )


def _unknown_option(error: MissingConfigException) -> str:
    if not error.missing_cfg_file or not error.options:
        return one_line(error)
    group, _, option = error.missing_cfg_file.rpartition("/")
    group = group.strip("/")
    if group in PLUGINS and f"{group}={option}" not in OTHER_PLACES:
        plugin = option.removesuffix("_local").removesuffix("_slurm")
        if plugin in EXTRAS:
            return f"{group}={option} is not installed: `{install_command(EXTRAS[plugin])}` installs it."
        package = f"hydra-{plugin}-{PLUGINS[group]}"
        return f"{group}={option} is unknown or not installed; try `pip install {package}`."
    return _no_such_file(group, option, sorted(error.options))


def _no_such_file(group: str, option: str, known: list[str]) -> str:
    if instead := OTHER_PLACES.get(f"{group}={option}"):
        return f"{group}={option} is not needed: {instead}."
    where = named_if_in_params(group, option)
    return f"{where}{group}={option}: {CONF}/{group}/ has no file of this name; {suggest(option, known)}"


def _unknown_key(error: OmegaConfBaseException) -> str:
    full_key = str(error.full_key)
    return named_if_in_params(full_key) + _describe_unknown_key(full_key, error.parent_node)


def _describe_unknown_key(full_key: str, parent: Any) -> str:
    if instead := OTHER_PLACES.get(full_key):
        return f"{full_key} is not a key: {instead}."
    group, _, entry = full_key.partition(".")
    if group in LIST_GROUPS and entry in options(group):
        return f"{full_key}: this option is not chosen; add {group}=[{entry}]."
    key = full_key.rpartition(".")[2]
    siblings = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
    target = parent.get("_target_") if isinstance(parent, DictConfig) and "_target_" in siblings else None
    problem = f"the chosen option ({target}) has no such key" if target else f"no chosen file of {CONF}/ has this key"
    if full_key == key and isinstance(parent, DictConfig) and (whole := _keys_ending_with(key, parent)):
        return f"{full_key}: {problem}; did you mean {list_names(whole, ' or ')}?"
    # The configuration has no key for these groups.
    others = ("experiment", *SWEEP_GROUPS) if full_key == key else ()
    close = get_close_matches(key, [*siblings, *others], n=1)
    names = [name for name in siblings if not re.fullmatch(r"_\w+_", name) and name != "hydra"]
    if full_key.startswith(("hydra.launcher.", "hydra.sweeper.")):
        return f"{full_key}: {problem}; {'its keys are ' + ', '.join(names) if names else 'it has none'}."
    if close:
        return f"{full_key}: {problem}; did you mean `{full_key[: -len(key)]}{close[0]}`?"
    if target:
        allowed = f"its keys are {list_names(names)}; " if names else ""
        return f"{full_key}: {problem}; {allowed}+{full_key}=... passes another argument."
    return f"{full_key}: {problem}; {'allowed are ' + list_names(names) if names else 'it has none'}."


def _keys_ending_with(name: str, config: DictConfig) -> list[str]:
    """Return the keys `group.name` of a configuration, as in `optimizer.lr` for `lr`."""
    groups = OmegaConf.to_container(config, resolve=False)
    assert isinstance(groups, dict)
    own = {str(group): keys for group, keys in groups.items() if group != "hydra" and isinstance(keys, dict)}
    return [f"`{group}.{name}`" for group, keys in own.items() if name in keys]


# Keys of an option's file that the pipeline reads itself; the others are arguments of its `_target_`.
PIPELINE_KEYS: dict[str, set[str]] = {
    "model": {
        "weights",
        "input_size",
        "crop_fraction",
        "max_upscaling",
        "min_input_size",
        "reset_classifier",
        "default_weights",
    },
    "optimizer": {"full_batch"},
    "loss": {"output_activation", "class_weights"},
    "callbacks.*": {"needs_single_batches"},
    "augmentation.*": {"per_batch", "mixes_labels", "pil_on_cpu"},
}
# Arguments that the pipeline passes itself, so that an option must not have them.
INJECTED_ARGS: dict[str, set[str]] = {
    "model": {"channels", "size", "classes", "is_pretrained"},
    "model.default_weights": {"name"},
    "optimizer": {"params"},
    "loss": {"reduction"},
    "scheduler": {"step", "steps"},
    "augmentation.*": {"images", "generator", "flip_mask"},
    "metrics.*": {"num_classes"},
}
# Arguments for which null stands for what the pipeline knows later, and a value that suits as well for a smoke build.
FILLED_LATER: dict[str, dict[str, Any]] = {"augmentation.*": {"size": 1}}
# Values that are names, with the function that looks them up and rejects unknown ones.
NAME_LOOKUPS = {"loss.output_activation": "cifar_pipeline.models.build.get_activation"}
TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
HYDRA_KEYS = {"_target_", "_partial_", "_args_", "_recursive_", "_convert_"}


def target_config(options: Mapping[str, Any], group: str) -> dict[str, Any]:
    """Return an option as a plain dict for `hydra.utils.instantiate`: its `_target_` and that target's arguments."""
    plain = OmegaConf.to_container(options, resolve=True) if isinstance(options, DictConfig) else options
    assert isinstance(plain, Mapping)
    pipeline_keys = PIPELINE_KEYS.get(_rule_key(group), set())
    return {str(key): value for key, value in plain.items() if key not in pipeline_keys}


def instantiate_option(options: Mapping[str, Any], group: str, **changed: Any) -> Any:
    """Build what an option's `_target_` names, with the option's other keys and `changed` as arguments."""
    return instantiate({**target_config(options, group), **changed}, _convert_="all")


def _rule_key(key: str) -> str:
    """Return the key of this module's tables: `callbacks.*` for `callbacks.early_stopping`."""
    group, _, entry = key.partition(".")
    return f"{group}.*" if group in LIST_GROUPS and "." not in entry else key


def check_targets(config: DictConfig) -> None:
    """Raise UserError for a `_target_` that cannot be imported, or for arguments that it rejects.

    Imports the targets' modules, torch among them, which takes seconds.
    """
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    for key, node in _targets({str(key): value for key, value in plain.items()}):
        check_target(key, target_config(node, key))
    for key, function in NAME_LOOKUPS.items():
        get_object(function)(OmegaConf.select(config, key))


def check_added_keys(config: DictConfig, overrides: Iterable[str]) -> None:
    """Raise UserError for keys that the `_target_` of their option does not take.

    Only the targets with keys that the schema does not declare, or that an override adds, are imported.
    """
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    added = [word.lstrip("+").partition("=")[0] for word in overrides if word.startswith("+")]
    for key, node in _targets({str(key): value for key, value in plain.items()}):
        arguments = target_config(node, key)
        is_declared = all(name in HYDRA_KEYS or f"{key}.{name}" in field_schemas() for name in arguments)
        if not is_declared or any(name.startswith(f"{key}.") for name in added):
            check_target(key, arguments)


def check_target(key: str, node: Mapping[str, Any]) -> None:
    """Raise UserError for a `_target_` that cannot be imported, or for arguments that it rejects."""
    target = node["_target_"]
    try:
        parameters = inspect.signature(get_object(target)).parameters
    except Exception as error:
        raise UserError(f"{key}._target_={target} cannot be imported: {_import_error_reason(target, error)}") from None
    injected = INJECTED_ARGS.get(_rule_key(key), set())
    for name, value in node.items():
        if name in HYDRA_KEYS:
            continue
        if name in injected:
            raise UserError(f"{key}.{name} must not be set in conf/: the pipeline passes it to {target} itself.")
        if name not in parameters:
            if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
                continue
            allowed = [parameter for parameter in parameters if parameter not in injected]
            raise UserError(f"{key}.{name}: {target} has no such argument{_suggestion(name, allowed)}")
        dtype = parameters[name].annotation
        is_int_for_float = dtype is float and isinstance(value, int) and not isinstance(value, bool)
        if dtype in TYPE_NAMES and not (type(value) is dtype or is_int_for_float):
            raise UserError(f"{key}.{name}={to_yaml_inline(value)} is not allowed; {target} takes {TYPE_NAMES[dtype]}.")
    if _rule_key(key) in SMOKE_BUILDS:
        _smoke_build(key, node)


def _suggestion(name: str, allowed: list[str]) -> str:
    return f"; {suggest(name, allowed)}" if allowed else "; it has no arguments."


def _smoke_build(key: str, node: Mapping[str, Any]) -> None:
    """Build and use the target once, because a class checks its arguments itself."""
    later = FILLED_LATER.get(_rule_key(key), {})
    node = {name: later.get(name) if value is None else value for name, value in node.items()}
    try:
        SMOKE_BUILDS[_rule_key(key)](instantiate(node, _convert_="all"))
    except Exception as error:
        user_error = find_user_error(error)
        if user_error is not None:
            raise user_error from None
        reason = one_line(root_cause(error)).rstrip(".")
        values = ", ".join(f"{name}={to_yaml_inline(value)}" for name, value in node.items() if name not in HYDRA_KEYS)
        raise UserError(f"{key}: {node['_target_']} rejects {values}: {reason}.") from None


def _build_optimizer(build: Callable[..., Any]) -> None:
    from unittest.mock import patch  # Imported here: it takes thirty milliseconds, and torch seconds.

    from torch import nn
    from torch.optim import Optimizer

    # torch wraps this method with `torch._disable_dynamo`, which imports torch's compiler and takes seconds.
    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    with patch.object(Optimizer, "add_param_group", add_param_group):
        build([nn.Parameter()])


SMOKE_BUILDS: dict[str, Callable[[Any], Any]] = {
    "loss": lambda loss: loss,
    "optimizer": _build_optimizer,
    "scheduler": lambda factor: factor(0, 1),
    "data.source": lambda source: source,
    "data.fallback": lambda source: source,
    "callbacks.*": lambda callback: callback,
    "augmentation.*": lambda transform: transform,
    "hydra.sweeper.sampler": lambda sampler: sampler,
    "hydra.sweeper.pruner": lambda pruner: pruner,
}


def _import_error_reason(target: str, error: BaseException) -> str:
    """Explain why a target cannot be imported: the name that its module lacks, or the module's own error."""
    names = target.split(".")
    parent: Any = None
    for count, name in enumerate(names, 1):
        full_name = ".".join(names[:count])
        try:
            parent = getattr(parent, name) if hasattr(parent, name) else import_module(full_name)
        except ModuleNotFoundError as missing:
            if parent is None or (missing.name != full_name and not (missing.name or "").startswith(f"{full_name}.")):
                break
            submodules = [module.name for module in pkgutil.iter_modules(getattr(parent, "__path__", []))]
            close = get_close_matches(name, [*submodules, *vars(parent)], n=1)
            module_name = full_name.rpartition(".")[0]
            return f"{module_name} has no `{name}`" + (f"; did you mean `{close[0]}`?" if close else ".")
        except Exception as import_error:
            error = import_error
            break
    return one_line(root_cause(error)).rstrip(".") + "."


def root_cause(error: BaseException) -> BaseException:
    """Return the first error in a chain of causes: Hydra wraps the errors of a constructor into its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def target_names(node: Any) -> Iterator[str]:
    """Yield the `_target_` names in nested mappings and lists."""
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from target_names(value)
    elif isinstance(node, list):
        for value in node:
            yield from target_names(value)


def _targets(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the options with a `_target_`, also those in lists, each with its key: `a.b`, or `a.b.0` in a list."""
    for key, value in node.items():
        if isinstance(value, list):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, dict):
            if isinstance(value.get("_target_"), str):
                yield f"{prefix}{key}", value
            yield from _targets(value, f"{prefix}{key}.")


# Keys that can be set; `sweeps.callback` checks the values of those of launchers and sweepers.
SETTABLE = re.compile(
    r"hydra[/.](launcher|sweeper|callbacks|searchpath)|hydra\.(launcher|sweeper)\.(?!_target_$).+|hydra/callbacks/.+"
    r"|hydra\.callbacks\.(?!sweep$|sweep\.).+|hydra\.sweep\.(dir|subdir)|hydra\.mode|hydra\.job\.name"
    r"|hydra\.job\.config\.override_dirname\..+"
)
# Keys that have one possible value, and why.
FIXED: dict[str, tuple[Any, str]] = {
    "hydra.job.chdir": (False, "conf/, data/ and models/ are read in the project's folder"),
    "hydra.run.dir": (".", "a single run writes models/ and reports/ in the project's folder"),
    "hydra.output_subdir": (None, "`--cfg job` prints the configuration, and each MLflow run has it as config.yaml"),
    "hydra.verbose": (False, "the option -v shows debug messages"),
}
_LOGGING = "-v, -q and the environment variable LOG_LEVEL choose the messages that are shown"
# Keys that cannot be set, by their first part, and why.
REASONS = {
    "hydra.run": FIXED["hydra.run.dir"][1],
    "hydra.job_logging": _LOGGING,
    "hydra.hydra_logging": _LOGGING,
    "hydra.job.env_set": "set environment variables before the command, which records those that change numbers",
    "hydra.job.env_copy": "set environment variables before the command, which passes them on",
    "hydra.callbacks.sweep": "this callback opens each sweep in MLflow",
    "hydra.launcher._target_": "choose launcher=joblib or another option of conf/launcher/, or hydra/launcher=NAME",
    "hydra.sweeper._target_": "choose sweep=search, or hydra/sweeper=NAME",
    "hydra.job": "Hydra sets it itself",
    "hydra.runtime": "Hydra sets it itself",
    "hydra.overrides": "Hydra sets it itself",
}
OTHERWISE = (
    "Hydra has no such setting, or it has no effect here; sweeps have hydra.sweep, hydra.launcher, hydra.sweeper"
)
# Keys that only a sweep reads.
SWEEP_KEYS = re.compile(r"hydra[./](sweep|launcher|sweeper)\b.*|hydra\.job\..+")
SWEEP_CALLBACK = "cifar_pipeline.sweeps.callback.SweepCallback"
# Options of Hydra's command line that read other files than those of this project, and why they are refused.
REFUSED_OPTIONS = {
    "config_dir": f"put the options into {CONF}/",
    "config_path": f"the configuration is {CONF}/config.yaml",
    "config_name": f"the configuration is {CONF}/config.yaml, and experiment=NAME chooses one of {CONF}/experiment/",
    "experimental_rerun": "type the command of the run again, which its tag `command` in MLflow has",
}
MODES = ("run", "multirun", "cfg", "info", "shell_completion")
SHELLS = ("bash", "fish", "zsh")
# Longest name of a log file, in bytes, on usual file systems, without its ending.
MAX_NAME_BYTES = 250


def parse_arguments(arguments: list[str]) -> tuple[argparse.Namespace, bool]:
    """Parse a command line as Hydra does, and refuse what it cannot do here.

    Returns:
        Hydra's arguments, and whether it will only print help, options or completions.

    Raises:
        UserError: unknown options, overrides on both sides of an option, options that exclude each other, or settings
            of Hydra that cannot be set.
    """
    args, unknown = get_args_parser().parse_known_args(arguments)
    if args.help or args.hydra_help:
        return args, True
    if unknown:
        raise UserError(_describe_unknown(unknown))
    for name, instead in REFUSED_OPTIONS.items():
        if getattr(args, name):
            raise UserError(f"--{name.replace('_', '-')} cannot be used: {instead}.")
    chosen = [f"--{name.replace('_', '-')}" for name in MODES if getattr(args, name)]
    if chosen == ["--multirun", "--cfg"]:
        raise UserError("--multirun and --cfg exclude each other: leave out --multirun to see a trial's configuration.")
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(chosen)} exclude each other: choose one of them.")
    if (args.package or args.resolve) and not args.cfg:
        raise UserError("--package and --resolve say what --cfg prints: add --cfg job.")
    if args.shell_completion:
        shells = [word.partition("=")[2] for word in args.overrides if re.match(r"(un)?install=", word)]
        if unsupported := [shell for shell in shells if shell not in SHELLS]:
            raise UserError(f"There is no completion for {unsupported[0]}; choose one of {', '.join(SHELLS)}.")
        return args, True
    if args.multirun and "hydra.mode=RUN" in args.overrides:
        raise UserError("--multirun and hydra.mode=RUN exclude each other: leave out one of them.")
    _check_overrides(args)
    return args, args.info is not None


def _describe_unknown(words: list[str]) -> str:
    if option := next((word for word in words if word.startswith("-")), None):
        return f"{option} is no option of this command; --help lists them."
    return f"{' '.join(words)}: write all overrides together, before or after the options such as -m."


def is_multirun(args: argparse.Namespace) -> bool:
    """Return whether a command line starts a multirun."""
    return bool(args.multirun) or "hydra.mode=MULTIRUN" in args.overrides


def _check_overrides(args: argparse.Namespace) -> None:
    """Refuse keys of Hydra, on the command line and in params.yaml, that cannot be set."""
    words = [word for word in args.overrides if re.match(r"[+~]*hydra[./@=]", word)]
    typed = {override.key_or_group: override for override in OverridesParser.create().parse_overrides(words)}
    settings = (read_params().get("overrides") or {}).get("hydra")
    for key in (*typed, *flatten_dict({"hydra": settings} if isinstance(settings, Mapping) else {})):
        if not SETTABLE.fullmatch(key) and key not in FIXED:
            dotted = key.replace("/", ".")
            reason = next((text for name, text in REASONS.items() if f"{dotted}.".startswith(f"{name}.")), OTHERWISE)
            raise UserError(f"{key} cannot be set: {reason}.")
    for key, override in typed.items():
        if SWEEP_KEYS.fullmatch(key) and key not in FIXED and not is_multirun(args) and not args.cfg and not args.info:
            raise UserError(f"{override.input_line} is for sweeps only: add -m, or leave it out.")
        # Hydra builds callbacks and warns of folders before a sweep can check its configuration.
        if re.fullmatch(r"hydra\.callbacks\.[^.]+\._target_", key):
            check_target(key.removesuffix("._target_"), {"_target_": str(override.value())})
        if key == "hydra.searchpath":
            value = override.value()
            _check_folders(value if isinstance(value, list) else [value])


def check_settings(hydra: DictConfig) -> None:
    """Raise UserError for settings of Hydra that a run or sweep cannot work with.

    Args:
        hydra: the node `hydra` of a composed configuration.
    """
    for key, (value, reason) in FIXED.items():
        actual = OmegaConf.select(hydra, key.removeprefix("hydra."))
        actual = OmegaConf.to_container(actual) if OmegaConf.is_config(actual) else actual
        if actual != value and not (value is False and actual is None):
            raise UserError(f"{key}={to_yaml_inline(actual)} cannot be used: {reason}.")
    _check_name("" if OmegaConf.is_missing(hydra.job, "name") else hydra.job.name)
    container = OmegaConf.to_container(hydra.callbacks, resolve=True)
    assert isinstance(container, dict)
    callbacks = {str(name): node for name, node in container.items()}
    if (callbacks.get("sweep") or {}).get("_target_") != SWEEP_CALLBACK:
        raise UserError(f"hydra.callbacks.sweep cannot be set: {REASONS['hydra.callbacks.sweep']}.")
    for name, node in callbacks.items():
        if not isinstance(node, dict) or "_target_" not in node:
            raise UserError(f"hydra.callbacks.{name} names no class: write +hydra.callbacks.{name}._target_=....")
        check_target(f"hydra.callbacks.{name}", node)
    _check_folders(hydra.searchpath or [])


def _check_folders(folders: Iterable[Any]) -> None:
    for folder in map(str, folders):
        if "://" not in folder.removeprefix("file://") and not Path(folder.removeprefix("file://")).is_dir():
            raise UserError(f"hydra.searchpath: there is no folder {folder}.")


def _check_name(name: str) -> None:
    if name in (".", "..") or re.search(r"[/\\\0]", name) or len(name.encode()) > MAX_NAME_BYTES:
        raise UserError(
            f"hydra.job.name={to_yaml_inline(name)} cannot be used: it names each trial's log file, so it must be a "
            "file's name without a folder."
        )
