"""What a training is to run on, chosen once and said in one line. What it ran on is read back (`ran.py`)."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from cifar_pipeline.console import Refusal, warn
from cifar_pipeline.training.processes import ALONE, Processes
from cifar_pipeline.training.ran import device_name

# Precisions that an accelerator does not have: why, and what to write instead.
IMPOSSIBLE = {
    ("cpu", "16-mixed"): ("torch has no float16 there, and Lightning would take bf16-mixed", "bf16-mixed, or 32-true"),
    ("mps", "64-true"): ("Apple's GPUs have no float64", "32-true"),
}

# Where the driver of NVIDIA's GPUs lists them, on Linux.
DRIVER = Path("/proc/driver/nvidia/gpus")


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
        """The GPU's name, or the CPU with its threads."""
        return device_name(torch.device(self.accelerator), self.threads)

    def planned(self) -> dict[str, str]:
        """What of this is read back when it ran."""
        return {
            "device": self.device,
            "threads": str(self.threads),
            "precision": self.precision,
            "processes": str(self.devices),
        }

    def __str__(self) -> str:
        several = f"{self.devices} processes, each on " if self.devices > 1 else ""
        return f"{several}{self.device} ({self.reason}), precision {self.precision}"


def choose_hardware(
    machine: Mapping[str, Any], precision: Mapping[str, str], cores: int, images: int, processes: Processes = ALONE
) -> Hardware:
    """Choose by conf/machine and conf/precision, and set torch's number of threads accordingly.

    A thread for each of the `cores`, but no more than `images`, those of a step, are worth; both are shared by the
    training's `processes` on this machine.

    Raises `Refusal` where the accelerator asked for is not here, or can't compute in that precision.
    """
    accelerator, reason = choose_accelerator(str(machine["accelerator"]))
    key, asked = f"precision.{accelerator}", precision[accelerator]
    if (accelerator, asked) in IMPOSSIBLE:
        why, instead = IMPOSSIBLE[accelerator, asked]
        raise Refusal(f"{key}={asked} cannot be had: {why}; write {key}={instead}.")
    worth = max(1, images // processes.count // int(machine["images_per_thread"]))
    own = max(1, cores // processes.here)
    threads = min(own, worth) if machine["threads"] == "auto" else int(machine["threads"])
    torch.set_num_threads(threads)
    if asked == "32-true":
        # Otherwise convolutions on NVIDIA's GPUs round their inputs to 10 bits of mantissa (TF32).
        torch.backends.cudnn.allow_tf32 = False
    return Hardware(accelerator, processes.count, threads, asked, reason)


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
    trouble = gpu_trouble() if "cuda" not in there else ""
    if accelerator not in there:
        but = f" (and an NVIDIA GPU that torch can't use: {trouble})" if trouble else ""
        raise Refusal(
            f"machine.accelerator={asked}: this machine has {' and '.join(there)}{but}; write auto to take the best."
        )
    if asked == "auto" and trouble:
        _warn_once(f"There is an NVIDIA GPU, but torch can't use it ({trouble}): it trains without.")
        return accelerator, "the GPU can't be used"
    reason = "asked for" if asked != "auto" else "no GPU found" if accelerator == "cpu" else "the fastest here"
    return accelerator, reason


def gpu_trouble() -> str:
    """Why torch finds no GPU although the driver lists one; empty where there is none, or where it is hidden."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1", "NoDevFiles"):
        return ""
    if not DRIVER.is_dir() or not any(DRIVER.iterdir()):
        return ""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split())[:200].rstrip(".")
    return "it gives no reason"


@cache
def _warn_once(line: str) -> None:
    warn(line)
