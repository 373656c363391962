"""What a training is to run on, chosen once and said in one line. What it ran on is read back (`ran.py`).

Reads back on what, and how, a training really ran: Lightning and torch may take something else than asked for.
"""

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from cifar_pipeline.training.distributed import SINGLE_PROCESS, DistributedContext
from cifar_pipeline.training.module import Classifier
from cifar_pipeline.utils.console import warning
from cifar_pipeline.utils.errors import UserError

# A name and a value each: device, threads, precision, strategy, processes, engine, images_per_step, processor, cores.
Facts = dict[str, str]


class RuntimeReader(Callback):
    """Keeps, in the checkpoints too, with what each process of a training that was broken off has taken its steps."""

    def __init__(self) -> None:
        self.parts: list[Facts] = []
        self.seconds_before = 0.0
        self.start = time.perf_counter()
        self.current: tuple[Trainer, Classifier] | None = None
        self.first_step = 0

    @property
    def seconds(self) -> float:
        """Those of all processes up to their last checkpoints, and of this one until now."""
        return self.seconds_before + time.perf_counter() - self.start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        self.current, self.first_step = (trainer, pl_module), trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # From here on Lightning takes the network back from where it was trained.
        self.parts, self.current = self._all_parts(), None

    def facts(self) -> Facts:
        """What ran; where it changed from one process to the next, one value after the other: `1, then 2`."""
        values: dict[str, list[str]] = {}
        for part in self._all_parts():
            for key, value in part.items():
                kept = values.setdefault(key, [])
                if kept[-1:] != [value]:
                    kept.append(value)
        return {key: ", then ".join(kept) for key, kept in values.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"parts": self._all_parts(), "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.parts, self.seconds_before = state_dict["parts"], state_dict["seconds"]

    def _all_parts(self) -> list[Facts]:
        if self.current is None or self.current[0].global_step == self.first_step:
            return self.parts
        return [*self.parts, read_runtime_facts(*self.current)]


def read_runtime_facts(trainer: Trainer, module: Classifier) -> Facts:
    """What the training runs on at this moment."""
    device, threads = next(module.parameters()).device, torch.get_num_threads()
    return {
        "device": device_name(device, threads),
        "threads": str(threads),
        "precision": str(trainer.precision),
        "strategy": str(getattr(trainer.strategy, "strategy_name", type(trainer.strategy).__name__)),
        "processes": str(trainer.world_size),
        "engine": module.engine,
        "images_per_step": str(module.step_images),
        "processor": processor(),
        "cores": str(os.cpu_count() or 1),
    }


def report_differences(planned: Facts, ran: Facts) -> None:
    """Warn of what did not run as planned, which is recorded as it ran."""
    found = [f"{key} {ran[key]} (planned: {value})" for key, value in planned.items() if ran.get(key, value) != value]
    if found:
        warning(f"The training ran in another way than this command planned, and is recorded so: {'; '.join(found)}.")


def device_name(device: torch.device, threads: int) -> str:
    """What to call a device in a report: the GPU's name, or the CPU with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {threads} thread{'s' if threads > 1 else ''}"


def processor() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


# Precisions that an accelerator does not have: why, and what to write instead.
UNSUPPORTED = {
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


def select_hardware(
    machine: Mapping[str, Any],
    precision: Mapping[str, str],
    cores: int,
    images: int,
    processes: DistributedContext = SINGLE_PROCESS,
) -> Hardware:
    """Choose by conf/runtime and conf/precision, and set torch's number of threads accordingly.

    A thread for each of the `cores`, but no more than `images`, those of a step, are worth; both are shared by the
    training's `processes` on this machine.

    Raises `Refusal` where the accelerator asked for is not here, or can't compute in that precision.
    """
    accelerator, reason = select_accelerator(str(machine["accelerator"]))
    key, asked = f"precision.{accelerator}", precision[accelerator]
    if (accelerator, asked) in UNSUPPORTED:
        why, instead = UNSUPPORTED[accelerator, asked]
        raise UserError(f"{key}={asked} cannot be had: {why}; write {key}={instead}.")
    worth = max(1, images // processes.world_size // int(machine["min_images_per_thread"]))
    own = max(1, cores // processes.local_world_size)
    threads = min(own, worth) if machine["threads"] == "auto" else int(machine["threads"])
    torch.set_num_threads(threads)
    if asked == "32-true":
        # Otherwise convolutions on NVIDIA's GPUs round their inputs to 10 bits of mantissa (TF32).
        torch.backends.cudnn.allow_tf32 = False
    return Hardware(accelerator, processes.world_size, threads, asked, reason)


def select_accelerator(asked: str) -> tuple[str, str]:
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
        raise UserError(
            f"runtime.accelerator={asked}: this machine has {' and '.join(there)}{but}; write auto to take the best."
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
    warning(line)
