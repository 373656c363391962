"""Reject settings of Hydra that break a command or have no effect, before any work.

Hydra's own keys (`hydra.job.chdir`, `hydra/launcher`) are given on the command line, in conf/ or in params.yaml's
`overrides`. Most of them move or rename files that the pipeline reads in fixed places, or are set by Hydra itself.
"""

import argparse
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from cifar_pipeline.config.params import CONF, read_params, to_yaml_inline
from cifar_pipeline.config.validation import check_target
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import flatten_dict

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
        UserError: options that exclude each other, or settings of Hydra that cannot be set.
    """
    args, unknown = get_args_parser().parse_known_args(arguments)
    if args.help or args.hydra_help or unknown:
        return args, True
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


def is_multirun(args: argparse.Namespace) -> bool:
    """Whether a command line starts a multirun."""
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
