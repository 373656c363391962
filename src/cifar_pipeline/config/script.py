"""How a script beside the pipeline starts and ends: with the stages' configuration, and with one clear sentence."""

import os
import sys
from collections.abc import Callable

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cifar_pipeline.config.check import check
from cifar_pipeline.config.compose import composed
from cifar_pipeline.config.sentences import sentence
from cifar_pipeline.console import Refusal, complain
from cifar_pipeline.faults import fault_sentence
from cifar_pipeline.interruption import Interrupted, listen


def configuration() -> DictConfig:
    """The configuration that conf/ and params.yaml make, checked."""
    config = composed()
    check(config)
    return config


def run_script(main: Callable[[], int | None]) -> None:
    """Run what a person started, and end the process with the exit code that it returns.

    Ends it with code 2 and one sentence where it refuses, with 1 where the machine failed, and with 130 or 143 where
    somebody stopped it.
    """
    listen()
    try:
        sys.exit(main())
    except (KeyboardInterrupt, Interrupted) as interruption:
        complain("Stopped.")
        sys.exit(interruption.code if isinstance(interruption, Interrupted) else 130)
    except (Refusal, HydraException, OmegaConfBaseException, YAMLError) as error:
        complain(sentence(error))
        sys.exit(2)
    except BrokenPipeError:
        # Whoever read the output, `head` for one, has seen enough; Python would complain about the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        fault = fault_sentence(error)
        if fault is None:
            raise
        complain(fault)
        sys.exit(1)
