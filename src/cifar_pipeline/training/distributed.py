"""Detect how many ranks train, which one this process is, and whether torchrun, srun or this process starts them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import one_line

LAUNCHERS = "torchrun or srun"


@dataclass(frozen=True)
class DistributedContext:
    """The ranks of a training, which share each batch, and which of them this process is.

    Args:
        rank: global rank of this process.
        local_world_size: ranks on this machine.
        num_nodes: machines, each with the same number of ranks.
        strategy: name of Lightning's strategy.
        environment: launcher that started the ranks; None where this process has to launch all of them.
    """

    rank: int = 0
    local_world_size: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    environment: ClusterEnvironment | None = None

    @property
    def world_size(self) -> int:
        """Number of ranks on all machines."""
        return self.local_world_size * self.num_nodes

    @property
    def is_distributed(self) -> bool:
        """Whether there are several ranks."""
        return self.world_size > 1

    @property
    def needs_launch(self) -> bool:
        """Whether this process is not a rank, but has to launch the ranks."""
        return self.is_distributed and self.environment is None

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process prints messages, logs to MLflow and writes the result."""
        return self.rank == 0


SINGLE_PROCESS = DistributedContext()


def detect_distributed(options: Mapping[str, Any], accelerator: str, in_sweep: bool) -> DistributedContext:
    """Read the ranks of this training from conf/trainer and the launcher's environment variables.

    Raises:
        UserError: config and launcher contradict each other, or the strategy is not supported here.
    """
    strategy, devices, num_nodes = str(options["strategy"]), options["devices"], options["num_nodes"]
    if strategy == "auto":
        if any(number not in ("auto", 1) for number in (devices, num_nodes)):
            raise UserError(
                f"trainer.devices={devices} and trainer.num_nodes={num_nodes} need several processes, but "
                "trainer.strategy=auto is a single process; use trainer=ddp."
            )
        return SINGLE_PROCESS
    if in_sweep:
        raise UserError(
            f"trainer.strategy={strategy} is not supported in a sweep, whose trials already run in separate processes; "
            "leave it out, and retrain the best trial with it."
        )
    gpus = torch.cuda.device_count() if accelerator == "cuda" else 0
    if strategy == "fsdp" and not gpus:
        raise UserError(
            f"trainer.strategy=fsdp shards the weights over GPUs, but the accelerator is {accelerator}; "
            "use trainer=ddp."
        )
    if accelerator == "mps":
        raise UserError(
            "trainer.strategy=ddp supports CPUs and CUDA only; use trainer=default or runtime.accelerator=cpu."
        )
    environment = _environment()
    if environment is None:
        return _ranks_to_launch(strategy, devices, num_nodes, gpus)
    local_world_size = _launched_local_world_size(environment)
    launched_nodes = environment.world_size() // local_world_size
    _check_matches_launcher("devices", devices, local_world_size)
    _check_matches_launcher("num_nodes", num_nodes, launched_nodes)
    if local_world_size * launched_nodes == 1:
        return SINGLE_PROCESS
    rank = environment.node_rank() * local_world_size + environment.local_rank()
    return DistributedContext(rank, local_world_size, launched_nodes, strategy, environment)


def _environment() -> ClusterEnvironment | None:
    """Return the launcher of this process, detected by its environment variables; None if there is none."""
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) > 1:
        try:
            return SLURMEnvironment(auto_requeue=False)
        except RuntimeError as error:
            raise UserError(f"Slurm: {one_line(error)}") from None
    return None


def _launched_local_world_size(environment: ClusterEnvironment) -> int:
    if isinstance(environment, SLURMEnvironment):
        return int(os.environ["SLURM_NTASKS_PER_NODE"])
    return int(os.environ["LOCAL_WORLD_SIZE"])


def _check_matches_launcher(name: str, requested: Any, started: int) -> None:
    if requested not in ("auto", started):
        raise UserError(
            f"trainer.{name}={requested}, but {LAUNCHERS} started {started}; leave it out or make both the same."
        )


def _ranks_to_launch(strategy: str, devices: Any, num_nodes: Any, gpus: int) -> DistributedContext:
    """Return the context of a process without a launcher, which has to launch the ranks on this machine."""
    if num_nodes not in ("auto", 1):
        raise UserError(
            f"trainer.num_nodes={num_nodes}: ranks on other machines have to be started by {LAUNCHERS} "
            "(docs/scaling.md)."
        )
    local_world_size = (gpus or 1) if devices == "auto" else int(devices)
    if gpus and local_world_size > gpus:
        raise UserError(
            f"trainer.devices={local_world_size}, but this machine has {gpus} GPU{'s' if gpus > 1 else ''}."
        )
    return DistributedContext(0, local_world_size, 1, strategy) if local_world_size > 1 else SINGLE_PROCESS
