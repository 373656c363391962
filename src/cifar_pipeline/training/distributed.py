"""The beginning and the end of a training in several processes: started, met, told what to do, and ended together.

The others are started only where nobody else has (torchrun, Slurm), by the same command; what they need to find each
other stands in the environment, in the variables that Lightning reads.

Which of a training's processes this is, and how many there are: as Slurm, torchrun or the first process says.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer

from cifar_pipeline.utils.console import log_error
from cifar_pipeline.utils.errors import RESUME_HINT, EnvironmentFailure, UserError
from cifar_pipeline.utils.process import install_sigterm_handler

LAUNCHER_VARIABLES = "torchrun or srun"


@dataclass(frozen=True)
class DistributedContext:
    """The processes that share a training's batches.

    Args:
        rank: the number of this one among all.
        here: how many are on this machine.
        machines: how many machines there are, each with as many processes.
        strategy: Lightning's word for how they share the work.
        environment: who started them all; None where this one has to start the others.
    """

    rank: int = 0
    local_world_size: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    environment: ClusterEnvironment | None = None

    @property
    def world_size(self) -> int:
        """All of them."""
        return self.local_world_size * self.num_nodes

    @property
    def is_distributed(self) -> bool:
        """Whether there is anybody to share with."""
        return self.world_size > 1

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the one that speaks, keeps the run and writes the result."""
        return self.rank == 0

    def __str__(self) -> str:
        places = f" on {self.num_nodes} machines" if self.num_nodes > 1 else ""
        return f"{self.world_size} processes{places}, each with a share of every batch"


SINGLE_PROCESS = DistributedContext()


def detect_distributed(options: Mapping[str, Any], accelerator: str, in_sweep: bool) -> DistributedContext:
    """What conf/trainer and the environment say about the processes of this training on this accelerator.

    Raises `Refusal` where they contradict each other, or where several processes can't be had.
    """
    strategy, asked = str(options["strategy"]), (options["devices"], options["num_nodes"])
    if strategy == "auto":
        if any(number not in ("auto", 1) for number in asked):
            raise UserError(
                f"trainer.devices={asked[0]} and trainer.num_nodes={asked[1]} ask for several processes, but "
                "trainer.strategy=auto is one: write trainer=ddp."
            )
        return SINGLE_PROCESS
    if in_sweep:
        raise UserError(
            f"trainer.strategy={strategy} is no choice for the trials of a sweep, which are processes of their own "
            "already: leave it out here, and train the winner with it."
        )
    gpus = torch.cuda.device_count() if accelerator == "cuda" else 0
    if strategy == "fsdp" and not gpus:
        raise UserError(
            f"trainer.strategy=fsdp shares the weights among GPUs, and this runs on {accelerator}: write trainer=ddp."
        )
    if accelerator == "mps":
        raise UserError("trainer.strategy=ddp is for CPUs and CUDA: write trainer=default, or runtime.accelerator=cpu.")
    environment = _environment()
    if environment is None:
        return _to_be_started(strategy, asked, gpus)
    here = _started_here(environment)
    machines = environment.world_size() // here
    _require_as_asked("devices", asked[0], here)
    _require_as_asked("num_nodes", asked[1], machines)
    if here * machines == 1:
        return SINGLE_PROCESS
    rank = environment.node_rank() * here + environment.local_rank()
    return DistributedContext(rank, here, machines, strategy, environment)


def _environment() -> ClusterEnvironment | None:
    """Who started several processes, by the variables that each of them sets."""
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) > 1:
        try:
            return SLURMEnvironment(auto_requeue=False)
        except RuntimeError as error:
            raise UserError(f"Slurm: {' '.join(str(error).split())}") from None
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
        raise UserError(
            f"trainer.{name}={asked}, but {LAUNCHER_VARIABLES} started {started}: leave it out, or let both agree."
        )


def _to_be_started(strategy: str, asked: tuple[Any, Any], gpus: int) -> DistributedContext:
    """The first of the processes on this machine, which starts the others."""
    if asked[1] not in ("auto", 1):
        raise UserError(
            f"trainer.num_nodes={asked[1]}: processes on other machines are started by {LAUNCHER_VARIABLES} (docs/scaling.md)."
        )
    here = (gpus or 1) if asked[0] == "auto" else int(asked[0])
    if gpus and here > gpus:
        raise UserError(f"trainer.devices={here}, but this machine has {gpus} GPU{'s' if gpus > 1 else ''}.")
    return DistributedContext(0, here, 1, strategy) if here > 1 else SINGLE_PROCESS


POLL_SECONDS = 0.2
# How long the others may take to end by themselves, and this one to notice that one of them is gone.
GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class RunPlan:
    """What the first process says to the others: which training, from which checkpoint on, and whether at all."""

    fingerprint: str
    checkpoint: Path | None = None
    is_needed: bool = True


@dataclass
class WorkerProcesses:
    """The processes that this one has started; none where somebody else did."""

    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    missed: str = ""  # which one is gone, where this one had to be stopped for it

    def broken(self) -> str:
        """Which one ended badly, and how; empty where none did."""
        for rank, process in enumerate(self.started, start=1):
            if code := process.poll():
                how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
                return f"Process {rank} of this training {how}"
        return ""

    def end(self, seconds: float) -> None:
        """Wait so long for each of them to end, and then end it."""
        until = time.monotonic() + seconds
        for process in self.started:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _launch_workers(processes: DistributedContext) -> tuple[DistributedContext, WorkerProcesses]:
    """Start the other processes of this machine with the command of this one, unless somebody has started them."""
    if processes.environment is not None:
        return processes, WorkerProcesses()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "NODE_RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(processes.world_size),
    }  # fmt: skip
    command = [sys.executable, *sys.argv]
    others = WorkerProcesses()
    for rank in range(1, processes.world_size):
        others.started.append(subprocess.Popen(command, env={**os.environ, "LOCAL_RANK": str(rank)}))
    return replace(processes, environment=LightningEnvironment()), others


@contextmanager
def distributed_session(
    processes: DistributedContext, accelerator: str, fingerprint: str, start: RunPlan | None
) -> Iterator[tuple[DistributedContext, RunPlan]]:
    """Have all processes of a training in the block, with what the first one says, and let none outlive it.

    Only the first one has a `start` to tell the others; `fingerprint` is that of the training which this one is about.

    Raises `Fault` where another one ended badly, and `Refusal` where this one read another configuration.
    """
    if not processes.is_distributed:
        assert start is not None
        yield processes, start
        return
    processes, others = _launch_workers(processes)
    with _supervise(processes, others):
        told = _rendezvous(processes, accelerator, start)
        if told.fingerprint != fingerprint:
            raise UserError("The configuration or the code was changed while the processes started: start it again.")
        yield processes, told
        dist.destroy_process_group()


def release_workers(processes: DistributedContext, accelerator: str, fingerprint: str) -> None:
    """Tell processes that somebody else has started that there is nothing to do."""
    if processes.environment is not None:
        with distributed_session(processes, accelerator, fingerprint, RunPlan(fingerprint, is_needed=False)):
            pass


class RestoreSignalHandler(Callback):
    """Takes SIGTERM back from Lightning, whose handler waits for the other processes, which may be in a step."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        install_sigterm_handler()


def _rendezvous(processes: DistributedContext, accelerator: str, start: RunPlan | None) -> RunPlan:
    """Wait for all processes, and hand to each what the first one says."""
    environment = processes.environment
    assert environment is not None
    os.environ |= {"MASTER_ADDR": environment.main_address, "MASTER_PORT": str(environment.main_port)}
    # Lightning would choose another number of threads than conf/runtime.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    device = torch.device("cpu")
    if accelerator == "cuda":
        device = torch.device("cuda", environment.local_rank())
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if accelerator == "cuda" else "gloo", rank=processes.rank, world_size=processes.world_size
    )
    words = [start]
    dist.broadcast_object_list(words, src=0, device=device)
    assert words[0] is not None
    return words[0]


@contextmanager
def _supervise(processes: DistributedContext, others: WorkerProcesses) -> Iterator[None]:
    """Let no process outlive the others, and say in one sentence which of them broke off the block.

    Raises `Fault` where another one ended badly.
    """
    over = threading.Event()
    watch = threading.Thread(target=_watch_workers, args=(others, over), daemon=True)
    watch.start()
    seconds = 0.0
    try:
        yield
        seconds = GRACE_SECONDS
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        if isinstance(error, UserError):
            raise
        if not processes.is_rank_zero:
            # The first one tells, and ends this one; what nobody ends was its own fault, and is told after a while.
            if isinstance(error, Exception):
                time.sleep(GRACE_SECONDS)
            raise
        reason = _reason(error, others) if isinstance(error, Exception) else others.missed
        if reason:
            raise EnvironmentFailure(f"{reason}, and the training ends with it; {RESUME_HINT}.") from None
        raise
    finally:
        over.set()
        others.end(seconds)


def _reason(error: BaseException, others: WorkerProcesses) -> str:
    """Which other process broke off the training; empty where the error is this one's own."""
    is_lost = _is_peer_failure(error)
    until = time.monotonic() + GRACE_SECONDS
    while is_lost and others.started and not others.broken() and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    return others.broken() or ("Another process of this training is gone" if is_lost else "")


def _is_peer_failure(error: BaseException) -> bool:
    """Whether it is what gloo and NCCL say when another process doesn't answer any more."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _watch_workers(others: WorkerProcesses, over: threading.Event) -> None:
    """Stop this process where another one is gone and it doesn't notice: a GPU waits for it for minutes."""
    while not over.wait(POLL_SECONDS):
        if others.broken():
            if over.wait(GRACE_SECONDS):
                return
            others.missed = others.broken()
            os.kill(os.getpid(), signal.SIGTERM)
            if over.wait(2 * GRACE_SECONDS):
                return
            log_error(f"{others.broken()}, and the training ends with it; {RESUME_HINT}.")
            others.end(0)
            os._exit(1)
