"""How every stage starts: compose the configuration, refuse what is wrong, run, and end with one clear sentence.

How a script beside the pipeline starts and ends: with the stages' configuration, and with one clear sentence.

How every command of the project ends where something stops it: with one clear sentence and an exit code.
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

from cifar_pipeline.cli.stage_inputs import begin
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
    relax_gc,
    told,
)
from cifar_pipeline.utils.text import redact_logging


@contextmanager
def exit_on_error(stopped: str) -> Iterator[None]:
    """End the process with code 2 and a sentence where the block refuses, and with 1 where the machine failed.

    Where somebody stopped it, with 130 or 143 and the line that tells how to go on, or else the line `stopped`.
    """
    install_sigterm_handler()
    redact_logging()
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as interruption:
        interrupted = interruption if isinstance(interruption, Interrupted) else Interrupted(signal.SIGINT)
        if not is_muted():
            log_error(interrupted.message or stopped)
        told()
        sys.exit(interrupted.code)
    except BrokenPipeError:
        # Whoever read the output, `head` for one, has seen enough; Python would complain about the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except InstantiationException:
        raise  # What a class of ours or of the user's did wrong needs its traceback.
    except (UserError, HydraException, OmegaConfBaseException, YAMLError) as error:
        log_error(format_error(error))
        sys.exit(2)
    except Exception as error:
        fault = describe_environment_error(error)
        if fault is None:
            raise
        log_error(fault)
        sys.exit(1)


TIMINGS_DIR = Path(".cache/stages")
# The variables that hold the number of a training's process, the first that is set.
RANK_ENV_VARS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")


def run_stage(stage: Stage, around: Callable[[Stage], Stage] = lambda stage: stage) -> None:
    """Run `stage` on the configuration that conf/, params.yaml and the command line make.

    `around` wraps the stage together with the checks before it.

    Ends the process as `clear_ending` says where the configuration, or what the stage found, is refused.
    """
    exit_when_dvc_dies()
    relax_gc()
    _record_environment()
    # The processes of some launchers do not look beside the script for the package.
    source = str(Path(sys.argv[0]).resolve().parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    # Hydra then raises its errors instead of printing them over several lines.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with exit_on_error("Stopped: the same command goes on."):
        register_params()
        reject_invalid_group_overrides(sys.argv[1:])
        hydra.main(config_path=str(CONF.resolve()), config_name="config", version_base="1.3")(
            around(_with_checks(stage))
        )()


def _with_checks(stage: Stage) -> Stage:
    @functools.wraps(stage)
    def run(config: DictConfig) -> Any:
        start = time.perf_counter()
        relax_gc()  # here as well: what a launcher starts has not come through `run_stage`
        _record_environment()
        try:
            _setup_rank(config)
            _reject_sweep_only_groups()
            reject_values_of_other_options(chosen_options())
            validate(config)
            begin(stage.__name__, config)
            status("Loading libraries")
            result = stage(config)
        except Exception as error:
            refusal, fault = find_user_error(error), describe_environment_error(error)
            if refusal is not None and is_sweep():
                raise refusal from None
            # Here already, because Hydra announces an error before it passes it on.
            if refusal is not None or (isinstance(error, OmegaConfBaseException) and not is_sweep()):
                log_error(format_error(refusal or error))
                sys.exit(2)
            if fault is not None and not is_sweep():
                log_error(fault)
                sys.exit(1)
            raise
        if not is_sweep() and not is_muted():
            _record_duration(stage.__name__, time.perf_counter() - start)
        return result

    return run


def _record_environment() -> None:
    """Read the code and the variables as they are before anything that computes is imported."""
    loaded_sources()
    variables()


def _reject_sweep_only_groups() -> None:
    for group in SWEEP_GROUPS if not is_sweep() else ():
        if (option := chosen_options().get(group, "None")) != "None":
            raise UserError(f"{group}={option} is for a sweep: add -m, or leave it out.")


def _setup_rank(config: DictConfig) -> None:
    """Let only the first of a training's processes speak, and let none outlive what started it.

    Each finds its number in a variable of torchrun, of Slurm, or of the process that started it.
    """
    if OmegaConf.select(config, "trainer.strategy") in (None, "auto"):
        return
    rank = int(next((os.environ[name] for name in RANK_ENV_VARS if name in os.environ), 0))
    if rank > 0:
        mute(f"[process {rank}] ")
    if any(name in os.environ for name in RANK_ENV_VARS):
        exit_when_process_dies(os.getppid())


def _record_duration(stage: str, seconds: float) -> None:
    with atomic_write(TIMINGS_DIR / f"{stage}.json") as part:
        part.write_text(json.dumps({"seconds": round(seconds, 2)}) + "\n")


def load_config() -> DictConfig:
    """The configuration that conf/ and params.yaml make, checked."""
    config = compose_config()
    validate(config)
    return config


def run_script(main: Callable[[], int | None]) -> None:
    """Run what a person started, and end the process with the exit code that it returns, or as `clear_ending` says."""
    relax_gc()
    with exit_on_error("Stopped."):
        status("Loading libraries")
        sys.exit(main())
