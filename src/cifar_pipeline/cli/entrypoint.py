"""Run stages and scripts: compose and validate the configuration, then exit with one sentence and a code on errors.

Exit codes: 1 for a failure of the machine, 2 for a mistake of the user, 130 for Ctrl-C, 143 for SIGTERM. Bugs show
their traceback.

A stage's inputs are compared between its start and the publication of its result: DVC hashes them after the stage has
run, so a change in the meantime would be recorded in dvc.lock with a result that was computed from the old content.
"""

import argparse
import functools
import io
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

# Packages of each command, of which another Python lacks at least one.
REQUIRED = ("hydra", "omegaconf", "rich", "mlflow", "lightning", "torch")
ENVIRONMENT = Path(__file__).resolve().parents[3] / ".venv"


def require_environment() -> None:
    """Exit with one line that says how to activate the environment, if this Python lacks the project's packages."""
    missing = next((name for name in REQUIRED if find_spec(name) is None), None)
    if missing is None:
        return
    script = "Scripts" if sys.platform == "win32" else "bin"
    activate = f"{ENVIRONMENT}\\{script}\\activate" if script == "Scripts" else f"source {ENVIRONMENT}/bin/activate"
    if not ENVIRONMENT.is_dir():
        remedy = f"`make setup` creates the project's environment, and `{activate}` activates it"
    elif Path(sys.prefix).resolve() == ENVIRONMENT.resolve():
        remedy = "`make setup` completes the project's environment"
    else:
        remedy = f"activate the project's environment with `{activate}`"
    print(f"{sys.executable} has no package {missing}: {remedy}.", file=sys.stderr)
    raise SystemExit(2)


require_environment()  # before the imports below, which need the packages

import hydra
import yaml
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log, run_job
from hydra.errors import HydraException, InstantiationException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cifar_pipeline.config.compose import (
    STAGES,
    Stage,
    chosen_options,
    compose_config,
    compose_with_hydra,
    help_text,
    hydra_initialized,
    is_sweep,
    recorded_config,
    restrict_to_stage,
    set_experiment_name,
    stage_targets,
)
from cifar_pipeline.config.local_settings import (
    LAUNCHER_OPTION,
    load_environment,
    register_configs,
    reject_secrets_in,
)
from cifar_pipeline.config.params import (
    CONF,
    PARAMS,
    SWEEP_GROUPS,
    reject_invalid_group_overrides,
    reject_values_of_other_options,
    to_yaml_inline,
)
from cifar_pipeline.config.schema import validate
from cifar_pipeline.config.source_files import UsedFiles, loaded_sources, variables
from cifar_pipeline.config.tracking_uri import tracking_uri
from cifar_pipeline.config.unused_values import check_unused
from cifar_pipeline.config.validation import (
    check_added_keys,
    check_settings,
    find_user_error,
    format_error,
    is_multirun,
    parse_arguments,
)
from cifar_pipeline.tracking.trial import TrialPruned
from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.console import (
    LEVEL_HELP,
    configure_logging,
    current_rank,
    set_rank,
    status,
    take_level_options,
)
from cifar_pipeline.utils.cpu_load import load_meter
from cifar_pipeline.utils.errors import EnvironmentFailure, UserError, describe_environment_error
from cifar_pipeline.utils.file_hashes import hash_content
from cifar_pipeline.utils.process import (
    Interrupted,
    exit_when_dvc_dies,
    exit_when_process_dies,
    find_interruption,
    install_signal_handlers,
    is_reported_by_launcher,
    mark_reported,
    relax_gc,
)
from cifar_pipeline.utils.safe_io import require_bounded
from cifar_pipeline.utils.text import list_names, redact

log = logging.getLogger(__name__)

COMPOSED = Path("composed.yaml")
CONFIGURE = "configure"
MISSING = object()
STAGES_WITHOUT_SWEEPS = {CONFIGURE, *STAGES} - {"train"}


@dataclass
class StageStart:
    """The state at a stage's start: values by dotted keys, code, and inputs, each with its hash function and hash.

    `config_files` is a hash of the files from which `config` was composed; empty if they changed at that time.
    """

    stage: str
    overrides: list[str]
    config: DictConfig
    config_files: str
    values: dict[str, Any]
    used: UsedFiles
    inputs: dict[str, tuple[Callable[[], str], str]] = field(default_factory=dict)

    @property
    def is_from_dvc(self) -> bool:
        return is_started_by_dvc(self.stage)


_start: StageStart | None = None


def is_started_by_dvc(stage: str) -> bool:
    """Whether DVC started this process as `stage`, not as part of another stage."""
    return os.environ.get("DVC_STAGE", "").rpartition(":")[2] == stage


def record_start(stage: str, config: DictConfig) -> None:
    """Record the configuration and the code that a stage starts with.

    Raises:
        UserError: DVC started the stage, and params.yaml or conf/ differ from composed.yaml, which DVC records.
    """
    global _start
    used = loaded_sources().used(stage, stage_targets(config, stage))
    files = _config_files()
    start = StageStart(
        stage,
        list(HydraConfig.get().overrides.task),
        config,
        files if files == _initial_config_files() else "",
        _values(stage, config),
        used,
    )
    if start.is_from_dvc and stage != CONFIGURE:
        _require_recorded(start)
    _start = start


def watch(name: str, hash_input: Callable[[], str]) -> None:
    """Record an input of the running stage; `hash_input` returns a hash of its content."""
    assert _start is not None
    _start.inputs[name] = (hash_input, _hash_or_error(hash_input))


def require_unchanged() -> None:
    """Raise EnvironmentFailure if the code, the configuration or an input has changed since the stage started."""
    assert _start is not None
    change = next(_changes(_start), None)
    if change is not None:
        command = "`dvc repro`" if _start.is_from_dvc else "the same command"
        hint = ", or undo the change first to keep the finished training" if _start.stage == "train" else ""
        raise EnvironmentFailure(
            f"{change} while this ran, so nothing was published: run {command} to use the change{hint}."
        )


def _config_files() -> str:
    """Hash conf/ and params.yaml, which is much faster than to compose them: a sweep asks in each trial."""
    return _hash_or_error(lambda: hash_content(CONF, PARAMS))


@functools.cache
def _initial_config_files() -> str:
    """Return the hash at the first call, before Hydra composes a configuration from these files."""
    return _config_files()


def _hash_or_error(hash_input: Callable[[], str]) -> str:
    try:
        return hash_input()
    except (UserError, OSError) as error:
        return str(error)


def _changes(start: StageStart) -> Iterator[str]:
    """Yield what has changed since the start, as the beginnings of sentences."""
    if file := start.used.changed():
        yield f"{file} was edited"
    try:
        config = start.config if _config_files() == start.config_files else compose_config(start.overrides)
        now = _values(start.stage, config)
    except (UserError, HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        yield f"params.yaml or conf/ was edited ({format_error(error).rstrip('.')})"
        return
    if difference := _first_difference(start.values, now):
        key, before, after = difference
        yield f"{key} was changed from {before} to {after}"
    is_recorded = start.is_from_dvc and start.stage != CONFIGURE
    if is_recorded and (difference := _first_difference(start.values, _recorded(start.stage))):
        key, before, after = difference
        yield f"{key} was changed from {before} to {after} in {COMPOSED}"
    for name, (hash_input, before) in start.inputs.items():
        if _hash_or_error(hash_input) != before:
            yield f"{name} was changed"


def _require_recorded(start: StageStart) -> None:
    """Raise UserError where the stage's values differ from those in composed.yaml, which DVC records."""
    difference = _first_difference(start.values, _recorded(start.stage))
    if difference is None:
        return
    key, current, recorded = difference
    if key.startswith("versions."):
        raise UserError(
            f"{key.rpartition('.')[2]} {current} is installed, but {COMPOSED}, which DVC records, has {recorded}: run "
            "`dvc repro -f configure`, then `dvc repro`; or install the recorded version (`make setup`)."
        )
    raise UserError(
        f"{key} is {current} in params.yaml and conf/, but {recorded} in {COMPOSED}, which DVC records: run "
        "`dvc repro` to update it and what depends on it."
    )


def _values(stage: str, config: DictConfig) -> dict[str, Any]:
    """Return, by dotted keys, what DVC records for a stage; for `configure`, what it records for all of them."""
    recorded = recorded_config(config, [stage] if stage in STAGES else STAGES)
    return dict(_leaves(recorded[stage] if stage in STAGES else recorded))


def _recorded(stage: str) -> dict[str, Any]:
    """Return the stage's section of composed.yaml by dotted keys. Raises UserError where the file is unreadable."""
    try:
        require_bounded(COMPOSED.read_bytes())
        content = OmegaConf.to_container(OmegaConf.load(COMPOSED))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException):
        content = None
    section = content.get(stage) if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise UserError(f"{COMPOSED} is missing or damaged: run `dvc repro -f configure` to write it.")
    return dict(_leaves({str(key): value for key, value in section.items()}))


def _leaves(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _first_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Return the first key whose values differ, and both values as YAML."""
    for key in dict.fromkeys([*first, *second]):
        values = first.get(key, MISSING), second.get(key, MISSING)
        if values[0] != values[1]:
            before, after = ("missing" if value is MISSING else to_yaml_inline(value) for value in values)
            return key, before, after
    return None


@contextmanager
def exit_on_error(interrupt_message: str) -> Iterator[None]:
    """Exit with a message instead of a traceback: code 2 for a UserError, 1 for a failure of the machine.

    On Ctrl-C or SIGTERM the code is 130 or 143, and the message that of the Interrupted, or else `interrupt_message`.
    """
    install_signal_handlers()
    try:
        configure_logging()
        if load_environment():
            configure_logging()  # LOG_LEVEL may be among the variables.
        yield
    except (KeyboardInterrupt, Interrupted) as interruption:
        _exit_interrupted(interruption, interrupt_message)
    except BrokenPipeError:
        # The reader, such as `head`, has closed the pipe; Python would report the unwritten rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except InstantiationException:
        raise  # an error in a configured class, ours or the user's, needs its traceback
    except (UserError, HydraException, OmegaConfBaseException, YAMLError) as error:
        log.error(format_error(error))
        sys.exit(2)
    except Exception as error:
        if interrupted := find_interruption(error):
            _exit_interrupted(interrupted, interrupt_message)
        if user_error := find_user_error(error):
            log.error(format_error(user_error))
            sys.exit(2)
        failure = describe_environment_error(error)
        if failure is None:
            raise
        log.error(failure)
        sys.exit(1)


def _exit_interrupted(interruption: BaseException, interrupt_message: str) -> NoReturn:
    interrupted = find_interruption(interruption)
    assert interrupted
    if not current_rank() and not is_reported_by_launcher():
        log.error(interrupted.message or interrupt_message)
    mark_reported()
    sys.exit(interrupted.code)


TIMINGS_DIR = Path(".cache/stages")
# Environment variables with a process's rank; the first that is set counts.
RANK_ENV_VARS = ("RANK", "SLURM_PROCID")
# Seconds for which ranks above zero hold an error back: rank zero often has the same one, and its launcher stops them.
NONZERO_RANK_ERROR_DELAY = 4.0


def run_stage(stage: Stage, decorator: Callable[[Stage], Stage] = lambda stage: stage) -> None:
    """Run `stage` on the configuration composed of conf/, params.yaml and the command line.

    `decorator` wraps the stage including the checks before it. Errors end the process as in `exit_on_error`.
    """
    take_level_options(sys.argv)
    exit_when_dvc_dies()
    relax_gc()
    # Workers of some launchers do not search the folder of the script for modules.
    script_dir = str(Path(sys.argv[0]).resolve().parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([script_dir, *filter(None, [os.environ.get("PYTHONPATH")])])
    # Let Hydra raise its errors instead of printing them over several lines.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with exit_on_error("Stopped: the same command resumes."):
        _record_environment()
        register_configs()
        reject_invalid_group_overrides(sys.argv[1:])
        args, is_help = parse_arguments(sys.argv[1:])
        if args.help:
            print(redact(help_text(stage.__name__, args.overrides, args.resolve)))
            return
        task = decorator(_with_checks(stage))
        if is_help or is_multirun(args):
            if not is_help and stage.__name__ in STAGES_WITHOUT_SWEEPS:
                raise UserError(
                    f"{stage.__name__}.py runs one configuration: leave out -m; `python src/train.py -m ...` starts a "
                    "sweep."
                )
            _hydra_main(task)
            return
        with hydra_initialized(stage.__name__):
            config = compose_with_hydra(args.overrides)
            _check(config, args, stage.__name__)
            if not args.cfg:
                _run_job(task, config)
        if args.cfg == "job" and not args.package and not args.resolve:
            print(redact(OmegaConf.to_yaml(_without_hydra(config))), end="")
        elif args.cfg:
            with _redacted_output():
                _hydra_main(task)


def _hydra_main(task: Stage) -> None:
    hydra.main(config_path=str(CONF.resolve()), config_name="config", version_base="1.3")(task)()


@contextmanager
def _redacted_output() -> Iterator[None]:
    """Redact what is printed in the block: for `--cfg --resolve`, Hydra reads environment variables."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        yield
    print(redact(printed.getvalue()), end="")


def _check(config: DictConfig, args: argparse.Namespace, stage: str) -> None:
    """Validate the configuration of a single run, with the key `hydra`. Jobs of a multirun validate theirs."""
    check_settings(config.hydra)
    plain = _without_hydra(config)
    validate(plain)
    others = check_unused(plain, args.overrides, stage, compose_config)
    if others and not args.cfg and not is_started_by_dvc(stage):
        log.info(f"{stage}.py does not read {list_names(others)}.")
    if args.cfg:
        check_added_keys(plain, args.overrides)


def _without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def _run_job(task: Stage, config: DictConfig) -> None:
    """Run a composed configuration as `hydra.main` does, which would compose it twice more, in a third of a second."""
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    config.hydra.mode = RunMode.RUN
    callbacks = Callbacks(config)
    callbacks.on_run_start(config=config, config_name="config")
    job = run_job(task, config, "hydra.run.dir", None, HydraContext(GlobalHydra.instance().config_loader(), callbacks))
    callbacks.on_run_end(config=config, config_name="config", job_return=job)
    _ = job.return_value  # raises what the job has raised


def _with_checks(stage: Stage) -> Stage:
    @functools.wraps(stage)
    def run(config: DictConfig) -> Any:
        start = time.perf_counter()
        relax_gc()  # again, because a launcher's worker does not call `run_stage`
        try:
            load_meter().restart()
            load_environment()
            _record_environment()
            _setup_rank(config)
            _reject_sweep_only_groups()
            reject_values_of_other_options(chosen_options())
            validate(config)
            reject_secrets_in(config)
            tracking_uri()  # Refuses an invalid one before any work.
            if not is_sweep():  # The callback of a sweep sets its experiment for all trials.
                set_experiment_name(config.mlflow.experiment_name)
            record_start(stage.__name__, config)
            status("Loading libraries")
            is_stage = stage.__name__ in STAGES
            result = stage(restrict_to_stage(config, stage.__name__) if is_stage else config)
            if not is_sweep() and not current_rank():
                _record_duration(stage.__name__, time.perf_counter() - start)
        except Exception as error:
            if interrupted := find_interruption(error):  # Hydra would print a line about the library's error
                raise interrupted from error
            user_error, failure = find_user_error(error), describe_environment_error(error)
            if current_rank() and failure != "" and not isinstance(error, TrialPruned):
                time.sleep(NONZERO_RANK_ERROR_DELAY)
            if user_error is not None and is_sweep():
                raise user_error from None
            # Handled here, because Hydra prints an error before it raises it again.
            if user_error is not None or (isinstance(error, OmegaConfBaseException) and not is_sweep()):
                log.error(format_error(user_error or error))
                sys.exit(2)
            if failure is not None and not is_sweep():
                if failure:
                    log.error(failure)
                sys.exit(1)
            raise
        return result

    return run


def _record_environment() -> None:
    """Record source files, environment variables and conf/ before anything that computes is imported."""
    loaded_sources()
    variables()
    _initial_config_files()


def _reject_sweep_only_groups() -> None:
    for group in SWEEP_GROUPS if not is_sweep() else ():
        if (option := chosen_options().get(group, "None")) not in ("None", LAUNCHER_OPTION):
            raise UserError(f"{group}={option} is for sweeps only: add -m, or leave it out.")


def _setup_rank(config: DictConfig) -> None:
    """Set the rank of this process, and end it when the process that started it ends.

    The rank is read from the environment, where torchrun or Slurm has put it.
    """
    keys = ("strategy", "devices", "num_nodes")
    if all(OmegaConf.select(config, f"trainer.{key}") in (None, "auto", 1) for key in keys):
        return
    rank = int(next((os.environ[name] for name in RANK_ENV_VARS if name in os.environ), 0))
    set_rank(rank)
    if any(name in os.environ for name in RANK_ENV_VARS):
        exit_when_process_dies(os.getppid())


def _record_duration(stage: str, seconds: float) -> None:
    with atomic_write(TIMINGS_DIR / f"{stage}.json") as tmp:
        tmp.write_text(json.dumps({"seconds": round(seconds, 2)}) + "\n", encoding="utf-8")


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse an empty argument, such as that of an unset variable: as a path it is the current folder."""
        for argument in sys.argv[1:]:
            if not argument or re.fullmatch("--[a-z-]+=", argument):
                self.error(f"{argument or 'an argument'} is empty; is a variable of the shell unset?")
        return super().parse_known_args(*args, **kwargs)


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a script's parser, whose help lists the options of the log level, which `run_script` takes."""
    parser = _Parser(description=description)
    for option, text in LEVEL_HELP.items():
        parser.add_argument(option, action="store_true", help=text)
    return parser


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script, and exit with the code that it returns, or as in `exit_on_error`."""
    take_level_options(sys.argv)
    relax_gc()
    with exit_on_error("Stopped."):
        status("Loading libraries")
        sys.exit(main())
