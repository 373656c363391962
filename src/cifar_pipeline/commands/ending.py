"""How every command of the project ends where something stops it: with one clear sentence and an exit code."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cifar_pipeline.config.sentences import sentence
from cifar_pipeline.console import Refusal, complain, is_silent
from cifar_pipeline.faults import fault_sentence
from cifar_pipeline.interruption import Interrupted, listen, told
from cifar_pipeline.redaction import guard_output


@contextmanager
def clear_ending(stopped: str) -> Iterator[None]:
    """End the process with code 2 and a sentence where the block refuses, and with 1 where the machine failed.

    Where somebody stopped it, with 130 or 143 and the line that tells how to go on, or else the line `stopped`.
    """
    listen()
    guard_output()
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as interruption:
        interrupted = interruption if isinstance(interruption, Interrupted) else Interrupted(signal.SIGINT)
        if not is_silent():
            complain(interrupted.line or stopped)
        told()
        sys.exit(interrupted.code)
    except BrokenPipeError:
        # Whoever read the output, `head` for one, has seen enough; Python would complain about the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except InstantiationException:
        raise  # What a class of ours or of the user's did wrong needs its traceback.
    except (Refusal, HydraException, OmegaConfBaseException, YAMLError) as error:
        complain(sentence(error))
        sys.exit(2)
    except Exception as error:
        fault = fault_sentence(error)
        if fault is None:
            raise
        complain(fault)
        sys.exit(1)
