"""Which of a training's processes this is, and how many there are: as Slurm, torchrun or the first process says."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from cifar_pipeline.console import Refusal

LAUNCHED = "torchrun or srun"


@dataclass(frozen=True)
class Processes:
    """The processes that share a training's batches.

    Args:
        rank: the number of this one among all.
        here: how many are on this machine.
        machines: how many machines there are, each with as many processes.
        strategy: Lightning's word for how they share the work.
        environment: who started them all; None where this one has to start the others.
    """

    rank: int = 0
    here: int = 1
    machines: int = 1
    strategy: str = "auto"
    environment: ClusterEnvironment | None = None

    @property
    def count(self) -> int:
        """All of them."""
        return self.here * self.machines

    @property
    def are_several(self) -> bool:
        """Whether there is anybody to share with."""
        return self.count > 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that speaks, keeps the run and writes the result."""
        return self.rank == 0

    def __str__(self) -> str:
        places = f" on {self.machines} machines" if self.machines > 1 else ""
        return f"{self.count} processes{places}, each with a share of every batch"


ALONE = Processes()


def find_processes(options: Mapping[str, Any], accelerator: str, in_sweep: bool) -> Processes:
    """What conf/trainer and the environment say about the processes of this training on this accelerator.

    Raises `Refusal` where they contradict each other, or where several processes can't be had.
    """
    strategy, asked = str(options["strategy"]), (options["devices"], options["num_nodes"])
    if strategy == "auto":
        if any(number not in ("auto", 1) for number in asked):
            raise Refusal(
                f"trainer.devices={asked[0]} and trainer.num_nodes={asked[1]} ask for several processes, but "
                "trainer.strategy=auto is one: write trainer=ddp."
            )
        return ALONE
    if in_sweep:
        raise Refusal(
            f"trainer.strategy={strategy} is no choice for the points of a sweep, which are processes of their own "
            "already: leave it out here, and train the winner with it."
        )
    gpus = torch.cuda.device_count() if accelerator == "cuda" else 0
    if strategy == "fsdp" and not gpus:
        raise Refusal(
            f"trainer.strategy=fsdp shares the weights among GPUs, and this runs on {accelerator}: write trainer=ddp."
        )
    if accelerator == "mps":
        raise Refusal("trainer.strategy=ddp is for CPUs and CUDA: write trainer=default, or machine.accelerator=cpu.")
    environment = _environment()
    if environment is None:
        return _to_be_started(strategy, asked, gpus)
    here = _started_here(environment)
    machines = environment.world_size() // here
    _require_as_asked("devices", asked[0], here)
    _require_as_asked("num_nodes", asked[1], machines)
    if here * machines == 1:
        return ALONE
    rank = environment.node_rank() * here + environment.local_rank()
    return Processes(rank, here, machines, strategy, environment)


def _environment() -> ClusterEnvironment | None:
    """Who started several processes, by the variables that each of them sets."""
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) > 1:
        try:
            return SLURMEnvironment(auto_requeue=False)
        except RuntimeError as error:
            raise Refusal(f"Slurm: {' '.join(str(error).split())}") from None
    if "LOCAL_RANK" in os.environ:
        environment = LightningEnvironment()
        environment.set_world_size(int(os.environ["WORLD_SIZE"]))
        return environment
    return None


def _started_here(environment: ClusterEnvironment) -> int:
    """Processes on each machine."""
    if isinstance(environment, SLURMEnvironment):
        return int(os.environ["SLURM_NTASKS_PER_NODE"])
    if isinstance(environment, TorchElasticEnvironment):
        return int(os.environ["LOCAL_WORLD_SIZE"])
    return environment.world_size()


def _require_as_asked(name: str, asked: Any, started: int) -> None:
    if asked not in ("auto", started):
        raise Refusal(f"trainer.{name}={asked}, but {LAUNCHED} started {started}: leave it out, or let both agree.")


def _to_be_started(strategy: str, asked: tuple[Any, Any], gpus: int) -> Processes:
    """The first of the processes on this machine, which starts the others."""
    if asked[1] not in ("auto", 1):
        raise Refusal(
            f"trainer.num_nodes={asked[1]}: processes on other machines are started by {LAUNCHED} (docs/scale.md)."
        )
    here = (gpus or 1) if asked[0] == "auto" else int(asked[0])
    if gpus and here > gpus:
        raise Refusal(f"trainer.devices={here}, but this machine has {gpus} GPU{'s' if gpus > 1 else ''}.")
    return Processes(0, here, 1, strategy) if here > 1 else ALONE
