"""Assign the GPUs of this machine to the trials of a sweep.

The sweep's process lists the GPUs. Each trial takes `runtime.gpus_per_trial` of them, one, several or a part of one,
sees only those (CUDA_VISIBLE_DEVICES), and gives them back when it ends. What a trial takes are file locks, which the
system releases when the process ends, even if it is killed. The lock files are in a folder of the user, so the sweeps
of all workspaces share the GPUs of a machine. A trial with several GPUs trains in a process on each (`trial_ranks`).

CUDA reads that variable once in a process. So a process that runs several trials, such as a worker of joblib, takes the
GPUs of its first trial again for each of the others, and joblib starts no more processes than fit on the GPUs.
"""

import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from math import ceil
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import DictConfig, open_dict, read_write

from cifar_pipeline.config.schema import validate
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import count_noun, list_names

log = logging.getLogger(__name__)

KEY, JOBS_KEY, DEVICES_KEY = "runtime.gpus_per_trial", "hydra.launcher.n_jobs", "trainer.devices"
PROCESS_KEYS = (DEVICES_KEY, "trainer.strategy", "trainer.num_nodes")
VARIABLE = "CUDA_VISIBLE_DEVICES"
# Launchers whose trials run on this machine; those of clusters assign GPUs themselves.
LOCAL_LAUNCHERS = ("basic", "joblib", "submitit_local")
GPU_ACCELERATORS = ("auto", "gpu", "cuda")
POLL_SECONDS = 0.2
# Rounding errors of sums of shares.
EPSILON = 1e-6
# In the lines of `nvidia-smi -L`: `GPU 0: NVIDIA A100 (UUID: GPU-...)`, `  MIG 3g.20gb Device 0: (UUID: MIG-...)`.
UUID = re.compile(r"\(UUID: ((?:GPU|MIG)-[^)]+)\)")


@dataclass(frozen=True)
class GpuPool:
    """GPUs that the trials of a sweep share.

    Attributes:
        gpus: the name of each GPU in CUDA_VISIBLE_DEVICES, and the name of its lock files.
        share: the GPUs that a trial takes: a whole number, or the part of one that it shares with others.
        folder: of the lock files.
    """

    gpus: Mapping[str, str]
    share: float
    folder: Path

    @property
    def gpus_per_trial(self) -> int:
        """Number of GPUs that a trial sees."""
        return max(1, round(self.share))

    @property
    def trials_per_gpu(self) -> int:
        """Number of trials that one GPU runs at a time."""
        return max(1, int(1 / self.share + EPSILON))

    @property
    def max_trials(self) -> int:
        """Number of trials that the GPUs run at a time."""
        return len(self.gpus) // self.gpus_per_trial * self.trials_per_gpu

    @contextmanager
    def assign(self) -> Iterator[list[str]]:
        """Take a trial's GPUs for the block, waiting until they are free, and let this process see only those.

        Yields their names.

        Raises:
            UserError: the folder of the lock files is not writable.
        """
        global _own_gpus
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            locks = self._take() or self._wait()
        except OSError as error:
            raise UserError(
                f"{self.folder} is not writable ({error.strerror}), where sweeps lock the GPUs that they use: set "
                "XDG_CACHE_HOME to a folder that is."
            ) from None
        _own_gpus = tuple(locks)
        os.environ[VARIABLE] = ",".join(_own_gpus)
        try:
            yield list(_own_gpus)
        finally:
            with suppress(RuntimeError):  # CUDA fails in all calls after an error of a kernel
                if "torch" in sys.modules:
                    sys.modules["torch"].cuda.empty_cache()  # for other processes; does nothing without CUDA
            for lock in locks.values():
                lock.release()

    def _wait(self) -> dict[str, FileLock]:
        wanted = "a GPU" if self.gpus_per_trial == 1 else f"{self.gpus_per_trial} GPUs"
        log.info(f"Waiting for {wanted}: other trials use {list_names(self._candidates())}.")
        while not (taken := self._take()):
            time.sleep(POLL_SECONDS)
        return taken

    def _candidates(self) -> Iterable[str]:
        """Return the GPUs that this process can use."""
        return _own_gpus if _own_gpus and set(_own_gpus) <= self.gpus.keys() else self.gpus

    def _take(self) -> dict[str, FileLock] | None:
        """Lock a trial's share of the least used GPUs, by their names; None if so much is not left."""
        part = min(1.0, self.share)
        with FileLock(self.folder / "pool.lock"):  # of the pool, so that the sum of the shares cannot change meanwhile
            used = {gpu: self._used(gpu) for gpu in self._candidates()}
            free = [gpu for gpu in sorted(used, key=lambda name: used[name]) if used[gpu] + part <= 1 + EPSILON]
            if len(free) < self.gpus_per_trial:
                return None
            # In the order of CUDA_VISIBLE_DEVICES.
            names = [gpu for gpu in used if gpu in free[: self.gpus_per_trial]]
            return {gpu: self._lock(gpu, part) for gpu in names}

    def _lock(self, gpu: str, part: float) -> FileLock:
        """Lock a part of a GPU that has so much left, so that one of the locks for this part is free."""
        paths = (self.folder / f"{self.gpus[gpu]}_{part:g}_{number}.lock" for number in range(self.trials_per_gpu))
        return next(lock for lock in map(FileLock, paths) if _acquired(lock))

    def _used(self, gpu: str) -> float:
        """Return the part of a GPU that trials use; trials of another sweep may have another share."""
        files = self.folder.glob(f"{self.gpus[gpu]}_*.lock")
        return sum(float(path.stem.split("_")[-2]) for path in files if _is_held(path))


# The GPUs of the trials of this process.
_own_gpus: tuple[str, ...] = ()


def _acquired(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def _is_held(path: Path) -> bool:
    lock = FileLock(path)
    if _acquired(lock):
        lock.release()
        return False
    return True


def open_pool(config: DictConfig, composed: DictConfig, swept: Iterable[str]) -> GpuPool | None:
    """Return the GPUs for the trials of a multirun; None where there are none, or where the launcher assigns them.

    joblib gets at most as many processes as trials fit on the GPUs.

    Args:
        config: Hydra's, of the multirun.
        composed: the configuration that the trials share.
        swept: the keys that differ between the trials.

    Raises:
        UserError: `runtime` or `trainer` has an invalid value, trials would differ in their share of a GPU or in their
            number of processes, or a trial needs more GPUs than there are.
    """
    swept = set(swept)
    if KEY in swept:
        raise UserError(f"{KEY}: the trials of a sweep share the GPUs evenly; give it one value.")
    if key := next((key for key in PROCESS_KEYS if key in swept), None):
        raise UserError(f"{key} does not change a training's result, so trials cannot differ in it: give it one value.")
    validate(composed, "runtime", "trainer")
    if composed.trainer.num_nodes not in ("auto", 1):
        raise UserError(
            f"trainer.num_nodes={composed.trainer.num_nodes}: the processes of a trial run on one machine; leave it "
            "out, and retrain the best trial on several."
        )
    launcher = config.hydra.runtime.choices["hydra/launcher"]
    if launcher not in LOCAL_LAUNCHERS or not may_use_gpu(composed):
        return None
    pool = GpuPool(visible_gpus(), float(composed.runtime.gpus_per_trial), lock_dir())
    if not pool.gpus:
        return None
    _check_devices(composed.trainer.devices, pool)
    if launcher != "submitit_local":  # which starts all trials at once, so that some wait
        _limit_processes(config, pool)
    return pool


def _check_devices(devices: int | str, pool: GpuPool) -> None:
    """Raise UserError if there are fewer GPUs than a trial takes, or it would start another number of processes."""
    number, available = pool.gpus_per_trial, count_noun(len(pool.gpus), "GPU")
    if number > len(pool.gpus):
        raise UserError(f"{KEY}={number}, but the sweep sees {available}.")
    if devices not in ("auto", number):
        raise UserError(
            f"{DEVICES_KEY}={devices}, but each trial gets {count_noun(number, 'GPU')}: set {KEY}={devices}, and leave "
            f"{DEVICES_KEY} out."
        )


def may_use_gpu(config: DictConfig) -> bool:
    """Whether the training would use a GPU if there is one."""
    return config.runtime.accelerator in GPU_ACCELERATORS


def _limit_processes(config: DictConfig, pool: GpuPool) -> None:
    """Let joblib start as many processes as trials fit on the GPUs, or say how to use all of them."""
    jobs, gpus = int(config.hydra.launcher.get("n_jobs", 1)), count_noun(len(pool.gpus), "GPU")
    if jobs < 0:  # in joblib, -1 is as many as there are cores, -2 one less
        jobs += 1 + (os.cpu_count() or 1)
    if jobs * pool.gpus_per_trial < len(pool.gpus) and jobs < pool.max_trials:
        hint = f"launcher=joblib {JOBS_KEY}={pool.max_trials}"
        log.info(f"Trials at a time: {jobs}, on {gpus}; {hint} uses all of them.")
    if jobs > pool.max_trials:
        share = int(100 / ceil(jobs / len(pool.gpus))) / 100
        log.info(f"Trials at a time: {pool.max_trials} instead of {jobs}, on {gpus}; {KEY}={share:g} fits {jobs}.")
        # Every job composes its configuration again, so the value is added to Hydra's overrides as well.
        with read_write(config), open_dict(config):
            config.hydra.launcher.n_jobs = pool.max_trials
            config.hydra.overrides.hydra.append(f"{JOBS_KEY}={pool.max_trials}")


def lock_dir() -> Path:
    """Return the folder of the user's lock files for this machine; a home folder may be shared by several machines."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "cifar-pipeline" / "gpus" / socket.gethostname()


def visible_gpus() -> dict[str, str]:
    """Map the names of the GPUs that this process may use to names for lock files.

    As in CUDA, they are those of CUDA_VISIBLE_DEVICES up to the first one that does not exist, or all of the machine.
    An index and a UUID of the same GPU have the same lock.
    """
    installed = list(_installed_gpus())
    listed = os.environ.get(VARIABLE)
    if listed is None:
        return {
            name: _lock_name(name, installed)
            for number, gpu in enumerate(installed)
            for name in gpu[1:] or [str(number)]
        }
    names = takewhile(lambda name: _exists(name, installed), (name.strip() for name in listed.split(",")))
    return {name: _lock_name(name, installed) for name in names}


def _exists(name: str, installed: Sequence[Sequence[str]]) -> bool:
    if name.isdecimal():
        return not installed or int(name) < len(installed)
    return name.startswith(("GPU-", "MIG-"))


def _lock_name(name: str, installed: Sequence[Sequence[str]]) -> str:
    if name.isdecimal() and installed:
        name = installed[int(name)][0]
    complete = next((uuid for gpu in installed for uuid in gpu if uuid.startswith(name)), name)
    return re.sub(r"[^A-Za-z0-9.-]", "-", complete)


def _installed_gpus() -> Iterator[list[str]]:
    """Yield, for each of NVIDIA's GPUs, its UUID, followed by those of its MIG devices if it is divided into them."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return
    for gpu in re.split(r"^(?=GPU )", listed, flags=re.MULTILINE):
        if uuids := UUID.findall(gpu):
            yield uuids
