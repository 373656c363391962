"""A multirun in the process that started it: after the last job comes the comparison, and an exit code."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from cifar_pipeline.config.workspace import sweep_place
from cifar_pipeline.console import complain
from cifar_pipeline.files import only_one_if_free
from cifar_pipeline.interruption import pass_on

# How joblib's, submitit's and Ray's launchers say that a job's process is gone; none of them need be installed.
DEATHS = ("TerminatedWorkerError", "UncompletedJobError", "FailedJobError", "WorkerCrashedError", "NodeDiedError")

_parent = ""
_folder = Path()
_held = ExitStack()
_is_holder = False


def hold(sweep: str) -> None:
    """Lock the sweep with this identity until it has ended, so that nobody takes its run for one that was left.

    Where another process is at the same sweep, the lock is that one's, and so is the sweep's run.
    """
    global _is_holder
    place = sweep_place(sweep)
    place.parent.mkdir(parents=True, exist_ok=True)
    _is_holder = _held.enter_context(only_one_if_free(place))


def started(parent: str, folder: Path) -> None:
    """Remember the parent run and the folder of the multirun. Called by the callback."""
    global _parent, _folder
    _parent, _folder = parent, folder
    pass_on()


def concluded(launch: Callable[[], None]) -> None:
    """Launch a stage; after a multirun, compare its points and end the process with 1 where any of them failed.

    A job whose process was killed ends a multirun, not its comparison.
    """
    # Python clears away the semaphores of a killed job in a process of its own, which would warn after the last line.
    filters = [os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker:UserWarning"]
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, filters))
    killed = False
    try:
        launch()
    except KeyboardInterrupt:
        _leave()
        sys.exit(128 + signal.SIGINT)
    except SystemExit:
        _leave()
        raise
    except Exception as error:
        killed = type(error).__name__ in DEATHS
        if not killed and not _is_empty_search(error):
            _leave()
            raise
    if not _parent:
        return
    from cifar_pipeline.sweeps.conclusion import conclude

    all_well = conclude(_parent, _folder)
    if killed:
        complain("A job's process was killed: the same command typed again does the rest.")
    if killed or not all_well:
        sys.exit(1)


def _leave() -> None:
    if _parent:
        from cifar_pipeline.sweeps.conclusion import leave

        leave(_parent, _is_holder)


def _is_empty_search(error: Exception) -> bool:
    """Whether it is what Optuna has to say where every point failed."""
    return isinstance(error, ValueError) and str(error).startswith("No trials are completed")
