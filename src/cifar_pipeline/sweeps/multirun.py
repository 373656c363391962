"""A multirun in the process that started it: after the last job comes the comparison, and an exit code.

The folder of a multirun, which no other one writes to.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path

from omegaconf import DictConfig, open_dict, read_write

from cifar_pipeline.utils.atomic import exclusive_lock_if_free
from cifar_pipeline.utils.console import log_error
from cifar_pipeline.utils.paths import sweep_dir
from cifar_pipeline.utils.process import forward_sigterm

# How joblib's, submitit's and Ray's launchers say that a job's process is gone; none of them need be installed.
WORKER_DEATH_ERRORS = (
    "TerminatedWorkerError",
    "UncompletedJobError",
    "FailedJobError",
    "WorkerCrashedError",
    "NodeDiedError",
)

_parent = ""
_folder = Path()
_lock = ExitStack()
_holds_lock = False


def lock_sweep_dir(sweep: str) -> None:
    """Lock the sweep with this fingerprint until it has ended, so that nobody takes its run for one that was left.

    Where another process is at the same sweep, the lock is that one's, and so is the sweep's run.
    """
    global _holds_lock
    place = sweep_dir(sweep)
    place.parent.mkdir(parents=True, exist_ok=True)
    _holds_lock = _lock.enter_context(exclusive_lock_if_free(place))


def register_sweep(parent: str, folder: Path) -> None:
    """Remember the parent run and the folder of the multirun. Called by the callback."""
    global _parent, _folder
    _parent, _folder = parent, folder
    forward_sigterm()


def run_and_summarize(launch: Callable[[], None]) -> None:
    """Launch a stage; after a multirun, compare its trials and end the process with 1 where any of them failed.

    A job whose process was killed ends a multirun, not its comparison.
    """
    # Python clears away the semaphores of a killed job in a process of its own, which would warn after the last line.
    filters = [os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker:UserWarning"]
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, filters))
    killed = False
    try:
        launch()
    except KeyboardInterrupt:
        _abort()
        sys.exit(128 + signal.SIGINT)
    except SystemExit:
        _abort()
        raise
    except Exception as error:
        killed = type(error).__name__ in WORKER_DEATH_ERRORS
        if not killed and not _is_empty_search(error):
            _abort()
            raise
    if not _parent:
        return
    from cifar_pipeline.sweeps.summary import finish_sweep

    all_well = finish_sweep(_parent, _folder)
    if killed:
        log_error("A job's process was killed: the same command typed again does the rest.")
    if killed or not all_well:
        sys.exit(1)


def _abort() -> None:
    if _parent:
        from cifar_pipeline.sweeps.summary import abort_sweep

        abort_sweep(_parent, _holds_lock)


def _is_empty_search(error: Exception) -> bool:
    """Whether it is what Optuna has to say where every trial failed."""
    return isinstance(error, ValueError) and str(error).startswith("No trials are completed")


KEY = "hydra.sweep.dir"


@contextmanager
def sweep_subdir(config: DictConfig) -> Iterator[Path]:
    """Make the folder of a multirun, which no other one has: the second of one second gets a `-2` to its name.

    Every job composes its configuration anew, so the name that was found is added to Hydra's overrides. A folder that
    the command line names is taken as it is. The folder is removed where the block does not end well.
    """
    wanted = Path(config.hydra.sweep.dir)
    if any(word.lstrip("+").startswith(f"{KEY}=") for word in config.hydra.overrides.hydra):
        yield wanted
        return
    for number in count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            continue
    with read_write(config), open_dict(config):
        config.hydra.sweep.dir = str(folder)
        config.hydra.overrides.hydra.append(f"{KEY}='{_escaped(str(folder))}'")
    try:
        yield folder
    except BaseException:
        with suppress(OSError):
            folder.rmdir()
        raise


def _escaped(text: str) -> str:
    return text.replace("'", "\\'")
