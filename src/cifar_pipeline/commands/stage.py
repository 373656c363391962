"""How every stage starts: compose the configuration, refuse what is wrong, run, and end with one clear sentence."""

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifar_pipeline.commands.ending import clear_ending
from cifar_pipeline.commands.unchanged import begin
from cifar_pipeline.config.check import check
from cifar_pipeline.config.choices import CONF, OF_SWEEPS, refuse_odd_choices, register_choices
from cifar_pipeline.config.code import loaded_sources
from cifar_pipeline.config.environment import variables
from cifar_pipeline.config.sentences import refusal_in, sentence
from cifar_pipeline.config.start import Stage, choices, is_sweep
from cifar_pipeline.console import Refusal, complain, doing, is_silent, keep_silent
from cifar_pipeline.faults import fault_sentence
from cifar_pipeline.files import whole_file
from cifar_pipeline.interruption import end_with, end_with_dvc
from cifar_pipeline.memory import collect_rarely

SECONDS = Path(".cache/stages")
# The variables that hold the number of a training's process, the first that is set.
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")


def run_stage(stage: Stage, around: Callable[[Stage], Stage] = lambda stage: stage) -> None:
    """Run `stage` on the configuration that conf/, params.yaml and the command line make.

    `around` wraps the stage together with the checks before it.

    Ends the process as `clear_ending` says where the configuration, or what the stage found, is refused.
    """
    end_with_dvc()
    collect_rarely()
    _note_surroundings()
    # The processes of some launchers do not look beside the script for the package.
    source = str(Path(sys.argv[0]).resolve().parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    # Hydra then raises its errors instead of printing them over several lines.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with clear_ending("Stopped: the same command goes on."):
        register_choices()
        refuse_odd_choices(sys.argv[1:])
        hydra.main(config_path=str(CONF.resolve()), config_name="config", version_base="1.3")(around(_checked(stage)))()


def _checked(stage: Stage) -> Stage:
    @functools.wraps(stage)
    def run(config: DictConfig) -> Any:
        start = time.perf_counter()
        collect_rarely()  # here as well: what a launcher starts has not come through `run_stage`
        _note_surroundings()
        try:
            _be_one_of_several(config)
            _refuse_what_a_sweep_has()
            check(config)
            begin(stage.__name__, config)
            doing("Loading libraries")
            result = stage(config)
        except Exception as error:
            refusal, fault = refusal_in(error), fault_sentence(error)
            if refusal is not None and is_sweep():
                raise refusal from None
            # Here already, because Hydra announces an error before it passes it on.
            if refusal is not None or (isinstance(error, OmegaConfBaseException) and not is_sweep()):
                complain(sentence(refusal or error))
                sys.exit(2)
            if fault is not None and not is_sweep():
                complain(fault)
                sys.exit(1)
            raise
        if not is_sweep() and not is_silent():
            _note_seconds(stage.__name__, time.perf_counter() - start)
        return result

    return run


def _note_surroundings() -> None:
    """Read the code and the variables as they are before anything that computes is imported."""
    loaded_sources()
    variables()


def _refuse_what_a_sweep_has() -> None:
    for group in OF_SWEEPS if not is_sweep() else ():
        if (option := choices().get(group, "None")) != "None":
            raise Refusal(f"{group}={option} is for a sweep: add -m, or leave it out.")


def _be_one_of_several(config: DictConfig) -> None:
    """Let only the first of a training's processes speak, and let none outlive what started it.

    Each finds its number in a variable of torchrun, of Slurm, or of the process that started it.
    """
    if OmegaConf.select(config, "trainer.strategy") in (None, "auto"):
        return
    rank = int(next((os.environ[name] for name in RANKS if name in os.environ), 0))
    if rank > 0:
        keep_silent(f"[process {rank}] ")
    if any(name in os.environ for name in RANKS):
        end_with(os.getppid())


def _note_seconds(stage: str, seconds: float) -> None:
    with whole_file(SECONDS / f"{stage}.json") as part:
        part.write_text(json.dumps({"seconds": round(seconds, 2)}) + "\n")
