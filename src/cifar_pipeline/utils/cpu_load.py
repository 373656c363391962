"""Measure how many cores other processes keep busy, so that a training does not start more threads than are free.

Threads of one training wait for each other after each layer. Where one of them shares its core with another process,
all of them wait for that core, and several threads are slower than one.
"""

import functools
import os
import time
from dataclasses import dataclass

import psutil

# A shorter interval is a few ticks of the system's clock only.
MIN_SECONDS = 0.3
# Times of a core in which a process runs; that of lower priority yields to a training.
BUSY, LOW_PRIORITY = ("user", "system", "irq", "softirq"), "nice"


@dataclass(frozen=True)
class CpuTimes:
    """CPU times in seconds since an arbitrary moment: of the clock, of all processes, and of this one."""

    clock: float
    system: float
    own: float

    @staticmethod
    def now() -> "CpuTimes":
        """Read the times of the cores that this process may use, and those of this process and its ended children."""
        process = psutil.Process()
        keys = BUSY if not _has_low_priority(process) else (*BUSY, LOW_PRIORITY)
        cores = psutil.cpu_times(percpu=True)
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(cores))
        used = [cores[core] for core in allowed if core < len(cores)]
        return CpuTimes(
            time.perf_counter(),
            sum(getattr(core, key, 0.0) for core in used for key in keys),
            sum(process.cpu_times()[:4]),
        )


def allowed_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _has_low_priority(process: psutil.Process) -> bool:
    return os.name == "posix" and process.nice() > 0


class LoadMeter:
    """Measure the load by other processes since `restart`, which is since it was made."""

    def __init__(self) -> None:
        self.start = CpuTimes.now()

    def restart(self) -> None:
        """Begin a new interval."""
        self.start = CpuTimes.now()

    def busy_cores(self) -> float:
        """Return how many cores other processes kept busy on average; waits until the interval has MIN_SECONDS."""
        time.sleep(max(0.0, self.start.clock + MIN_SECONDS - time.perf_counter()))
        now = CpuTimes.now()
        busy = (now.system - self.start.system) - (now.own - self.start.own)
        return max(0.0, busy / (now.clock - self.start.clock))


@functools.cache
def load_meter() -> LoadMeter:
    """Return the meter of this process, which starts at the first call."""
    return LoadMeter()
