"""What a training runs on, chosen once and said in one line."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cifar_pipeline.console import Refusal
from cifar_pipeline.training.processes import ALONE, Processes


@dataclass(frozen=True)
class Hardware:
    """The accelerator of a training (`cpu`, `cuda` or `mps`), for how many processes, in which precision, and why."""

    accelerator: str
    devices: int
    threads: int
    precision: str
    reason: str

    @property
    def device(self) -> str:
        """What to call it in a report: the GPU's name, or the CPU with its threads."""
        if self.accelerator == "cuda":
            return torch.cuda.get_device_name()
        return f"{self.accelerator}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    def tags(self) -> dict[str, str]:
        """What to filter runs by."""
        tags = {
            "device": self.device,
            "threads": str(self.threads),
            "precision": self.precision,
            "processes": str(self.devices),
        }
        return tags | {"processor": processor(), "cores": str(os.cpu_count() or 1)}

    def __str__(self) -> str:
        several = f"{self.devices} processes, each on " if self.devices > 1 else ""
        return f"{several}{self.device} ({self.reason}), precision {self.precision}"


def processor() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def choose_hardware(
    machine: Mapping[str, Any], precision: Mapping[str, str], cores: int, images: int, processes: Processes = ALONE
) -> Hardware:
    """Choose by conf/machine and conf/precision, and set torch's number of threads accordingly.

    A thread for each of the `cores`, but no more than `images`, those of a step, are worth; both are shared by the
    training's `processes` on this machine.

    Raises `Refusal` where the accelerator asked for is not here.
    """
    accelerator, reason = choose_accelerator(str(machine["accelerator"]))
    worth = max(1, images // processes.count // int(machine["images_per_thread"]))
    own = max(1, cores // processes.here)
    threads = min(own, worth) if machine["threads"] == "auto" else int(machine["threads"])
    torch.set_num_threads(threads)
    return Hardware(accelerator, processes.count, threads, precision[accelerator], reason)


def choose_accelerator(asked: str) -> tuple[str, str]:
    """The accelerator, and why it was chosen.

    Raises `Refusal` where the one asked for is not here.
    """
    there = ["cpu"]
    if torch.backends.mps.is_available():
        there.insert(0, "mps")
    if torch.cuda.is_available():
        there.insert(0, "cuda")
    accelerator = there[0] if asked == "auto" else {"gpu": "cuda"}.get(asked, asked)
    if accelerator not in there:
        raise Refusal(
            f"machine.accelerator={asked}: this machine has {' and '.join(there)}; write auto to take the best."
        )
    reason = "asked for" if asked != "auto" else "no GPU found" if accelerator == "cpu" else "the fastest here"
    return accelerator, reason
