"""Run stages and scripts: compose and validate the configuration, then exit with one sentence and a code on errors.

Exit codes: 1 for a failure of the machine, 2 for a mistake of the user, 130 for Ctrl-C, 143 for SIGTERM. Bugs show
their traceback.
"""

import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cifar_pipeline.cli.stage_inputs import record_start
from cifar_pipeline.config.compose import Stage, chosen_options, compose_config, is_sweep
from cifar_pipeline.config.params import (
    CONF,
    SWEEP_GROUPS,
    register_params,
    reject_invalid_group_overrides,
    reject_values_of_other_options,
)
from cifar_pipeline.config.schema import validate
from cifar_pipeline.config.source_files import loaded_sources, variables
from cifar_pipeline.config.validation import find_user_error, format_error
from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.console import is_muted, log_error, mute, status
from cifar_pipeline.utils.errors import UserError, describe_environment_error
from cifar_pipeline.utils.process import (
    Interrupted,
    exit_when_dvc_dies,
    exit_when_process_dies,
    install_sigterm_handler,
    mark_reported,
    relax_gc,
)
from cifar_pipeline.utils.text import redact_logging


@contextmanager
def exit_on_error(interrupt_message: str) -> Iterator[None]:
    """Exit with a message instead of a traceback: code 2 for a UserError, 1 for a failure of the machine.

    On Ctrl-C or SIGTERM the code is 130 or 143, and the message that of the Interrupted, or else `interrupt_message`.
    """
    install_sigterm_handler()
    redact_logging()
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as interruption:
        interrupted = interruption if isinstance(interruption, Interrupted) else Interrupted(signal.SIGINT)
        if not is_muted():
            log_error(interrupted.message or interrupt_message)
        mark_reported()
        sys.exit(interrupted.code)
    except BrokenPipeError:
        # The reader, such as `head`, has closed the pipe; Python would report the unwritten rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except InstantiationException:
        raise  # an error in a configured class, ours or the user's, needs its traceback
    except (UserError, HydraException, OmegaConfBaseException, YAMLError) as error:
        log_error(format_error(error))
        sys.exit(2)
    except Exception as error:
        failure = describe_environment_error(error)
        if failure is None:
            raise
        log_error(failure)
        sys.exit(1)


TIMINGS_DIR = Path(".cache/stages")
# Environment variables with a process's rank; the first that is set counts.
RANK_ENV_VARS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")


def run_stage(stage: Stage, decorator: Callable[[Stage], Stage] = lambda stage: stage) -> None:
    """Run `stage` on the configuration composed of conf/, params.yaml and the command line.

    `decorator` wraps the stage including the checks before it. Errors end the process as in `exit_on_error`.
    """
    exit_when_dvc_dies()
    relax_gc()
    _record_environment()
    # Workers of some launchers do not search the folder of the script for modules.
    script_dir = str(Path(sys.argv[0]).resolve().parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([script_dir, *filter(None, [os.environ.get("PYTHONPATH")])])
    # Let Hydra raise its errors instead of printing them over several lines.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with exit_on_error("Stopped: the same command resumes."):
        register_params()
        reject_invalid_group_overrides(sys.argv[1:])
        hydra.main(config_path=str(CONF.resolve()), config_name="config", version_base="1.3")(
            decorator(_with_checks(stage))
        )()


def _with_checks(stage: Stage) -> Stage:
    @functools.wraps(stage)
    def run(config: DictConfig) -> Any:
        start = time.perf_counter()
        relax_gc()  # again, because a launcher's worker does not call `run_stage`
        _record_environment()
        try:
            _setup_rank(config)
            _reject_sweep_only_groups()
            reject_values_of_other_options(chosen_options())
            validate(config)
            record_start(stage.__name__, config)
            status("Loading libraries")
            result = stage(config)
        except Exception as error:
            user_error, failure = find_user_error(error), describe_environment_error(error)
            if user_error is not None and is_sweep():
                raise user_error from None
            # Handled here, because Hydra prints an error before it raises it again.
            if user_error is not None or (isinstance(error, OmegaConfBaseException) and not is_sweep()):
                log_error(format_error(user_error or error))
                sys.exit(2)
            if failure is not None and not is_sweep():
                log_error(failure)
                sys.exit(1)
            raise
        if not is_sweep() and not is_muted():
            _record_duration(stage.__name__, time.perf_counter() - start)
        return result

    return run


def _record_environment() -> None:
    """Record source files and environment variables before anything that computes is imported."""
    loaded_sources()
    variables()


def _reject_sweep_only_groups() -> None:
    for group in SWEEP_GROUPS if not is_sweep() else ():
        if (option := chosen_options().get(group, "None")) != "None":
            raise UserError(f"{group}={option} is for sweeps only: add -m, or leave it out.")


def _setup_rank(config: DictConfig) -> None:
    """Mute all ranks of a distributed training but rank zero, and end each when the process that started it ends.

    The rank is read from the environment, where torchrun, Slurm or rank zero has put it.
    """
    if OmegaConf.select(config, "trainer.strategy") in (None, "auto"):
        return
    rank = int(next((os.environ[name] for name in RANK_ENV_VARS if name in os.environ), 0))
    if rank > 0:
        mute(f"[rank {rank}] ")
    if any(name in os.environ for name in RANK_ENV_VARS):
        exit_when_process_dies(os.getppid())


def _record_duration(stage: str, seconds: float) -> None:
    with atomic_write(TIMINGS_DIR / f"{stage}.json") as tmp:
        tmp.write_text(json.dumps({"seconds": round(seconds, 2)}) + "\n")


def load_config() -> DictConfig:
    """Compose conf/ and params.yaml, and validate the configuration."""
    config = compose_config()
    validate(config)
    return config


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script, and exit with the code that it returns, or as in `exit_on_error`."""
    relax_gc()
    with exit_on_error("Stopped."):
        status("Loading libraries")
        sys.exit(main())
