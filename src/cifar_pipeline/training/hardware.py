"""Select accelerator, threads and precision of a training, and read back what it really ran on.

Lightning and torch may use something else than was requested, so `RuntimeReader` records the values in effect.
"""

import logging
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.nn.modules.conv import _ConvNd

from cifar_pipeline.training.distributed import SINGLE_PROCESS, DistributedContext
from cifar_pipeline.training.module import Classifier
from cifar_pipeline.utils.cpu_load import allowed_cores, load_meter
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import one_line

log = logging.getLogger(__name__)

# Keys: device, threads, precision, strategy, processes, engine, images_per_step, processor, cores.
RuntimeInfo = dict[str, str]


class RuntimeReader(Callback):
    """Record the runtime of each process that trained, one after the other if the training was interrupted.

    The records are saved in the checkpoints.
    """

    def __init__(self) -> None:
        self.previous: list[RuntimeInfo] = []
        self.elapsed_before_resume = 0.0
        self.start = time.perf_counter()
        self.current: tuple[Trainer, Classifier] | None = None
        self.first_step = 0

    @property
    def seconds(self) -> float:
        """Training time: that of earlier processes up to their last checkpoints, plus that of this one until now."""
        return self.elapsed_before_resume + time.perf_counter() - self.start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        self.current, self.first_step = (trainer, pl_module), trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning moves the model off the device after this.
        self.previous, self.current = self._records(), None

    def runtime(self) -> RuntimeInfo:
        """Return the runtime; values that changed between processes are joined: `1, then 2`."""
        history: dict[str, list[str]] = {}
        for record in self._records():
            for key, value in record.items():
                values = history.setdefault(key, [])
                if values[-1:] != [value]:
                    values.append(value)
        return {key: ", then ".join(values) for key, values in history.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"parts": self._records(), "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.previous, self.elapsed_before_resume = state_dict["parts"], state_dict["seconds"]

    def _records(self) -> list[RuntimeInfo]:
        if self.current is None or self.current[0].global_step == self.first_step:
            return self.previous
        return [*self.previous, read_runtime(*self.current)]


def read_runtime(trainer: Trainer, module: Classifier) -> RuntimeInfo:
    """Read what the training currently runs on."""
    device, threads = next(module.parameters()).device, torch.get_num_threads()
    return {
        "device": device_name(device, threads),
        "threads": str(threads),
        "precision": str(trainer.precision),
        "strategy": str(getattr(trainer.strategy, "strategy_name", type(trainer.strategy).__name__)),
        "processes": str(trainer.world_size),
        "engine": module.engine,
        "images_per_step": str(module.batch_size),
        "processor": processor_name(),
        "cores": str(os.cpu_count() or 1),
    }


def report_differences(planned: RuntimeInfo, actual: RuntimeInfo) -> None:
    """Warn about values of the runtime that differ from the planned ones."""
    differences = [
        f"{key} {actual[key]} (planned: {value})" for key, value in planned.items() if actual.get(key, value) != value
    ]
    if differences:
        log.warning(f"The training did not run as planned, and is recorded as it ran: {'; '.join(differences)}.")


def device_name(device: torch.device, threads: int) -> str:
    """Return the name of a GPU, or `cpu` with its number of threads, for reports."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {threads} thread{'s' if threads > 1 else ''}"


def processor_name() -> str:
    """Return the model name of the CPU, and the instruction set of torch's kernels, on which rounding depends."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{_processor_model()} ({capability})" if capability.startswith("AVX") else _processor_model()


def _processor_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


# Precisions that an accelerator does not support: the reason, and what to set instead.
UNSUPPORTED_PRECISIONS = {
    ("cpu", "16-mixed"): (
        "torch has no float16 autocast on CPUs, and Lightning would use bf16-mixed",
        "bf16-mixed, or 32-true",
    ),
    ("mps", "64-true"): ("Apple's GPUs have no float64", "32-true"),
}

# Number of threads of OpenMP, which torch and schedulers of clusters read.
THREADS_VARIABLE = "OMP_NUM_THREADS"
# Where NVIDIA's driver lists the GPUs on Linux.
NVIDIA_DRIVER_GPUS = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Hardware:
    """Accelerator, number of ranks, threads and precision of a training.

    Args:
        accelerator: `cpu`, `cuda` or `mps`.
        devices: number of ranks on all machines.
        threads: torch's threads per rank.
        precision: Lightning's name of the precision, such as `bf16-mixed`.
        reason: why this accelerator was selected.
        features_in_bfloat16: whether a frozen network computes its features in bfloat16.
        cores: number of cores that a rank may keep busy, with `runtime.threads` as many as that.
    """

    accelerator: str
    devices: int
    threads: int
    precision: str
    reason: str
    features_in_bfloat16: bool = False
    cores: int = 1

    @property
    def device(self) -> str:
        """Name of the GPU, or `cpu` with its number of threads."""
        return device_name(torch.device(self.accelerator), self.threads)

    def planned(self) -> dict[str, str]:
        """Return the values to compare with what `RuntimeReader` reads."""
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
    runtime: Mapping[str, Any],
    precision: Mapping[str, str],
    cores: int,
    images: int,
    distributed: DistributedContext = SINGLE_PROCESS,
    network: Callable[[], nn.Module] | None = None,
    resumed_threads: int | None = None,
) -> Hardware:
    """Select the hardware by conf/runtime and conf/precision, and set torch's number of threads.

    Args:
        runtime: conf/runtime.
        precision: conf/precision, the precision of each accelerator.
        cores: available cores, shared by the ranks on this machine.
        images: images per micro-batch, shared by all ranks.
        distributed: the ranks.
        network: builds the network, by whose layers the precision `auto` is decided; None: it is single precision.
        resumed_threads: threads with which the training began, if it is resumed (`select_threads`).

    Raises:
        UserError: the requested accelerator is not available, or does not support the precision.
    """
    accelerator, reason = select_accelerator(str(runtime["accelerator"]))
    key, configured = f"precision.{accelerator}", precision[accelerator]
    requested = auto_precision(network, precision) if configured == "auto" else configured
    if (accelerator, requested) in UNSUPPORTED_PRECISIONS:
        why, instead = UNSUPPORTED_PRECISIONS[accelerator, requested]
        raise UserError(f"{key}={requested} is not supported: {why}; use {key}={instead}.")
    cores_per_rank = max(1, cores // distributed.local_world_size)
    usable_cores = cores_per_rank if runtime["threads"] == "auto" else int(runtime["threads"])
    threads = usable_cores
    if runtime["threads"] == "auto":
        useful_threads = max(1, images // distributed.world_size // int(runtime["min_images_per_thread"]))
        threads, load = select_threads(min(usable_cores, useful_threads), distributed, resumed_threads)
        reason += load
    torch.set_num_threads(threads)
    if requested == "32-true":
        # Otherwise convolutions on NVIDIA GPUs round their inputs to 10 bits of mantissa (TF32).
        torch.backends.cudnn.allow_tf32 = False
    features_in_bfloat16 = requested.startswith("bf16") or (configured == "auto" and has_bfloat16_units())
    return Hardware(accelerator, distributed.world_size, threads, requested, reason, features_in_bfloat16, usable_cores)


def select_threads(
    most: int, distributed: DistributedContext = SINGLE_PROCESS, resumed_threads: int | None = None
) -> tuple[int, str]:
    """Return the number of threads for `runtime.threads=auto`, at least one, and what reduced it, for messages.

    It is OMP_NUM_THREADS, if that is set and smaller than `most`. A resumed training keeps its number, without which
    its weights would not be those of an uninterrupted one. Otherwise cores that other processes keep busy are left to
    them. Several ranks of a training start at the same time, so they do not count each other.
    """
    if distributed.world_size > 1:
        return most, ""
    if (variable := os.environ.get(THREADS_VARIABLE, "")).isdecimal() and int(variable) > 0:
        return min(most, int(variable)), f"; {THREADS_VARIABLE}={variable}" if int(variable) < most else ""
    if resumed_threads is not None:
        return resumed_threads, ""
    if most == 1:
        return 1, ""
    busy, cores = load_meter().busy_cores(), allowed_cores()
    threads = min(most, max(1, cores - round(busy)))
    return threads, f"; other processes keep {busy:.1f} of {cores} cores busy" if threads < most else ""


def auto_precision(network: Callable[[], nn.Module] | None, precision: Mapping[str, Any]) -> str:
    """Return the precision of a training on a CPU that suits the network.

    It follows from the processor and the layers, not from a measurement, so that repeated trainings are equal. Products
    of bfloat16 are faster on processors with units for them, but gradients of grouped convolutions are not, and small
    networks gain nothing.

    Args:
        network: builds the network.
        precision: conf/precision.

    Raises:
        UserError: the rule's smallest number of parameters is not configured.
    """
    if "cpu_bf16_min_parameters" not in precision:
        raise UserError("precision.cpu=auto also needs precision.cpu_bf16_min_parameters: choose precision=auto.")
    if network is None or not has_bfloat16_units():
        return "32-true"
    try:
        with torch.device("meta"):  # shapes only
            built = network()
    except Exception:
        return "32-true"  # its own code makes tensors of values
    parameters = sum(parameter.numel() for parameter in built.parameters())
    is_grouped = any(getattr(layer, "groups", 1) > 1 for layer in built.modules() if isinstance(layer, _ConvNd))
    is_faster = parameters >= precision["cpu_bf16_min_parameters"] and not is_grouped
    return "bf16-mixed" if is_faster else "32-true"


def has_bfloat16_units() -> bool:
    """Return whether the CPU multiplies bfloat16 itself (AVX512-BF16 or AMX)."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def select_accelerator(requested: str) -> tuple[str, str]:
    """Return the accelerator, and why it was selected.

    Raises `UserError` if the requested one is not available.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    accelerator = available[0] if requested == "auto" else {"gpu": "cuda"}.get(requested, requested)
    gpu_error = find_gpu_error() if "cuda" not in available else ""
    if accelerator not in available:
        unusable = f" (and an NVIDIA GPU that torch cannot use: {gpu_error})" if gpu_error else ""
        raise UserError(
            f"runtime.accelerator={requested}: this machine has {' and '.join(available)}{unusable}; "
            "use runtime.accelerator=auto for the fastest one available."
        )
    if requested == "auto" and gpu_error:
        _warn_once(f"This machine has an NVIDIA GPU, but torch cannot use it ({gpu_error}); training without it.")
        return accelerator, "GPU unusable"
    reason = "requested" if requested != "auto" else "no GPU found" if accelerator == "cpu" else "fastest available"
    return accelerator, reason


# Memory limit and memory use of a Linux container.
CGROUP = Path("/sys/fs/cgroup")


def available_memory(accelerator: str) -> int:
    """Return the free bytes of a GPU's memory, or the available ones of the RAM; a container may have less of it."""
    if accelerator == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    available = int(psutil.virtual_memory().available)
    try:
        limit, used = (int((CGROUP / f"memory.{name}").read_text(encoding="utf-8")) for name in ("max", "current"))
        cached = dict(line.split() for line in (CGROUP / "memory.stat").read_text(encoding="utf-8").splitlines())[
            "inactive_file"
        ]
        available = min(available, limit - used + int(cached))
    except (OSError, ValueError, KeyError):
        pass  # No container, or one without a limit.
    return available


def find_gpu_error() -> str:
    """Return why torch finds no GPU although the driver lists one; empty if there is none or it is hidden."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1", "NoDevFiles"):
        return ""
    if not NVIDIA_DRIVER_GPUS.is_dir() or not any(NVIDIA_DRIVER_GPUS.iterdir()):
        return ""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return one_line(error)[:200].rstrip(".")
    return "torch gives no reason"


@cache
def _warn_once(line: str) -> None:
    log.warning(line)
