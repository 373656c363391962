"""How a script beside the pipeline starts and ends: with the stages' configuration, and with one clear sentence."""

import sys
from collections.abc import Callable

from omegaconf import DictConfig

from cifar_pipeline.commands.ending import clear_ending
from cifar_pipeline.config.check import check
from cifar_pipeline.config.compose import composed
from cifar_pipeline.console import doing
from cifar_pipeline.memory import collect_rarely


def configuration() -> DictConfig:
    """The configuration that conf/ and params.yaml make, checked."""
    config = composed()
    check(config)
    return config


def run_script(main: Callable[[], int | None]) -> None:
    """Run what a person started, and end the process with the exit code that it returns, or as `clear_ending` says."""
    collect_rarely()
    with clear_ending("Stopped."):
        doing("Loading libraries")
        sys.exit(main())
