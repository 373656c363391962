"""Reads back on what, and how, a training really ran: Lightning and torch may take something else than asked for."""

import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from cifar_pipeline.console import warn
from cifar_pipeline.training.module import Classifier

# A name and a value each: device, threads, precision, strategy, processes, engine, images_per_step, processor, cores.
Facts = dict[str, str]


class ReadBack(Callback):
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
        return [*self.parts, read_back(*self.current)]


def read_back(trainer: Trainer, module: Classifier) -> Facts:
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


def tell_differences(planned: Facts, ran: Facts) -> None:
    """Warn of what did not run as planned, which is recorded as it ran."""
    found = [f"{key} {ran[key]} (planned: {value})" for key, value in planned.items() if ran.get(key, value) != value]
    if found:
        warn(f"The training ran in another way than this command planned, and is recorded so: {'; '.join(found)}.")


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
