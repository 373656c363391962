"""Run a multirun in the process that started it: lock the sweep, make its folder, summarize it, set the exit code."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from cifar_pipeline.utils.atomic import exclusive_lock_if_free
from cifar_pipeline.utils.paths import sweep_dir
from cifar_pipeline.utils.process import forward_sigterm

log = logging.getLogger(__name__)

# Exceptions of joblib, submitit and Ray for a dead worker, by name, because none of them need be installed.
WORKER_DEATH_ERRORS = (
    "TerminatedWorkerError",
    "UncompletedJobError",
    "FailedJobError",
    "WorkerCrashedError",
    "NodeDiedError",
)

# The module that supervises a job of submitit_local.
LOCAL_JOB = "submitit.local._local"

FOLDER_KEY = "hydra.sweep.dir"

_parent = ""
_folder = Path()
_lock = ExitStack()
_holds_lock = False


def lock_sweep_dir(sweep: str) -> bool:
    """Lock the sweep with this fingerprint until the process ends, so that its parent run does not count as stale.

    If another process runs the same sweep, that one keeps the lock, and the parent run is that one's to end: return
    False.
    """
    global _holds_lock
    path = sweep_dir(sweep)
    path.parent.mkdir(parents=True, exist_ok=True)
    _holds_lock = _lock.enter_context(exclusive_lock_if_free(path))
    return _holds_lock


def register_sweep(parent: str, folder: Path) -> None:
    """Set the parent run and the folder of the multirun. Called by the callback."""
    global _parent, _folder
    _parent, _folder = parent, folder
    forward_sigterm()


def run_and_summarize(launch: Callable[[], None]) -> None:
    """Launch a stage; after a multirun, print and save its comparison, and exit with 1 if any trial failed.

    The comparison is also made if a killed worker stopped the multirun.
    """
    # Python's resource tracker removes the semaphores of a killed job, and would print warnings after the last line.
    filters = [os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker:UserWarning"]
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, filters))
    try:
        killed = _launch_all(launch)
    except KeyboardInterrupt:
        _abort()
        sys.exit(128 + signal.SIGINT)
    except BaseException:
        _abort()
        raise
    if not _parent:
        return
    from cifar_pipeline.sweeps.summary import finish_sweep

    all_finished = finish_sweep(_parent, _folder)
    if killed:
        log.error("A job's process was killed: type the same command again to finish the sweep.")
    if killed or not all_finished:
        sys.exit(1)


def _launch_all(launch: Callable[[], None]) -> bool:
    """Launch the trials and wait for all of them. Return whether a worker was killed."""
    try:
        launch()
    except Exception as error:
        if type(error).__name__ not in WORKER_DEATH_ERRORS:
            raise
        _wait_for_local_jobs()
        return True
    return False


def _wait_for_local_jobs() -> None:
    """Wait for the jobs of submitit_local that still run: its launcher raises at the first one that was killed."""
    import psutil

    running = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if LOCAL_JOB in child.cmdline():
                running.append(child)
    if running:
        log.info(f"A job's process was killed; waiting for the others, whose output is in {_folder} ...")
        psutil.wait_procs(running)


def _abort() -> None:
    if _parent:
        from cifar_pipeline.sweeps.summary import abort_sweep

        abort_sweep(_parent, _holds_lock)


def typed_words(config: DictConfig, kind: str) -> list[str]:
    """Return the overrides of a multirun as typed, those of Hydra's keys (`hydra`) or the others (`task`).

    Their interpolations are not resolved: they have values in each trial only, and may read secrets.
    """
    words = OmegaConf.to_container(config.hydra.overrides[kind], resolve=False)
    assert isinstance(words, list)
    return [str(word) for word in words]


@contextmanager
def sweep_subdir(config: DictConfig) -> Iterator[Path]:
    """Create a folder for the multirun, with a suffix such as `-2` if two start in the same second.

    Every job composes its configuration again, so the name is added to Hydra's overrides. A folder given on the command
    line is used unchanged. If the block raises, the folder is removed.
    """
    default = Path(config.hydra.sweep.dir)
    if any(word.lstrip("+").startswith(f"{FOLDER_KEY}=") for word in typed_words(config, "hydra")):
        yield default
        return
    for number in count(1):
        folder = default if number == 1 else default.with_name(f"{default.name}-{number}")
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            continue
    with read_write(config), open_dict(config):
        config.hydra.sweep.dir = str(folder)
        config.hydra.overrides.hydra.append(f"{FOLDER_KEY}='{_escape_quotes(str(folder))}'")
    try:
        yield folder
    except BaseException:
        with suppress(OSError):
            folder.rmdir()
        raise


def _escape_quotes(text: str) -> str:
    return text.replace("'", "\\'")
