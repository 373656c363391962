"""Detect, launch, supervise and shut down the ranks of a distributed training.

Ranks are started by torchrun or srun, or else by rank zero, with its own command line. They find each other through the
environment variables that Lightning reads.
"""

import logging
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

from cifar_pipeline.utils.errors import RESUME_HINT, EnvironmentFailure, UserError
from cifar_pipeline.utils.process import install_sigterm_handler
from cifar_pipeline.utils.text import one_line

log = logging.getLogger(__name__)

LAUNCHERS = "torchrun or srun"
POLL_SECONDS = 0.2
# How long other ranks may take to exit by themselves, and this rank to notice that one of them died.
GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class DistributedContext:
    """The ranks of a training, which share each batch, and which of them this process is.

    Args:
        rank: global rank of this process.
        local_world_size: ranks on this machine.
        num_nodes: machines, each with the same number of ranks.
        strategy: name of Lightning's strategy.
        environment: launcher that started the ranks; None where rank zero has to start the others.
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
    def is_rank_zero(self) -> bool:
        """Whether this process prints messages, logs to MLflow and writes the result."""
        return self.rank == 0

    def __str__(self) -> str:
        machines = f" on {self.num_nodes} machines" if self.num_nodes > 1 else ""
        return f"{self.world_size} processes{machines}, each with a share of every batch"


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
        return _rank_zero_to_launch(strategy, devices, num_nodes, gpus)
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
    if "LOCAL_RANK" in os.environ:
        environment = LightningEnvironment()
        environment.set_world_size(int(os.environ["WORLD_SIZE"]))
        return environment
    return None


def _launched_local_world_size(environment: ClusterEnvironment) -> int:
    if isinstance(environment, SLURMEnvironment):
        return int(os.environ["SLURM_NTASKS_PER_NODE"])
    if isinstance(environment, TorchElasticEnvironment):
        return int(os.environ["LOCAL_WORLD_SIZE"])
    return environment.world_size()


def _check_matches_launcher(name: str, requested: Any, started: int) -> None:
    if requested not in ("auto", started):
        raise UserError(
            f"trainer.{name}={requested}, but {LAUNCHERS} started {started}; leave it out or make both the same."
        )


def _rank_zero_to_launch(strategy: str, devices: Any, num_nodes: Any, gpus: int) -> DistributedContext:
    """Return the context of rank zero, which has to launch the other ranks on this machine."""
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


@dataclass(frozen=True)
class RunPlan:
    """What rank zero broadcasts at the start.

    Args:
        fingerprint: of the training.
        checkpoint: to resume from; None: train from scratch.
        is_needed: False if there is nothing to train.
    """

    fingerprint: str
    checkpoint: Path | None = None
    is_needed: bool = True


@dataclass
class WorkerProcesses:
    """The ranks that this process has launched; none if torchrun or srun did."""

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    # Set when this process had to be interrupted because a worker died.
    failed: str = ""

    def failure(self) -> str:
        """Describe the first worker that died; empty if none did."""
        for rank, process in enumerate(self.processes, start=1):
            if code := process.poll():
                how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"exited with code {code}"
                return f"Rank {rank} {how}"
        return ""

    def stop(self, seconds: float) -> None:
        """Wait up to `seconds` for the workers to exit, then kill those that have not."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _launch_workers(context: DistributedContext) -> tuple[DistributedContext, WorkerProcesses]:
    """Start the other ranks with this process's command line, unless a launcher has started them."""
    if context.environment is not None:
        return context, WorkerProcesses()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "NODE_RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(context.world_size),
    }  # fmt: skip
    command = [sys.executable, *sys.argv]
    workers = WorkerProcesses()
    for rank in range(1, context.world_size):
        workers.processes.append(subprocess.Popen(command, env={**os.environ, "LOCAL_RANK": str(rank)}))
    return replace(context, environment=LightningEnvironment()), workers


@contextmanager
def distributed_session(
    context: DistributedContext, accelerator: str, fingerprint: str, run_plan: RunPlan | None
) -> Iterator[tuple[DistributedContext, RunPlan]]:
    """Launch and connect the ranks, broadcast the plan of rank zero, and stop all ranks when the block is left.

    Args:
        context: of this process.
        accelerator: `cpu` or `cuda`, which decides the backend.
        fingerprint: of the training that this process has read from its configuration.
        run_plan: of rank zero; None on all other ranks.

    Raises:
        EnvironmentFailure: another rank died.
        UserError: this rank has another configuration than rank zero.
    """
    if not context.is_distributed:
        assert run_plan is not None
        yield context, run_plan
        return
    context, workers = _launch_workers(context)
    with _supervise(context, workers):
        received = _rendezvous(context, accelerator, run_plan)
        if received.fingerprint != fingerprint:
            raise UserError(
                "The configuration or the code changed while the ranks were starting; run the command again."
            )
        yield context, received
        dist.destroy_process_group()


def release_workers(context: DistributedContext, accelerator: str, fingerprint: str) -> None:
    """Let ranks that a launcher has started exit, because there is nothing to train."""
    if context.environment is not None:
        with distributed_session(context, accelerator, fingerprint, RunPlan(fingerprint, is_needed=False)):
            pass


class RestoreSignalHandler(Callback):
    """Replace Lightning's SIGTERM handler, which waits for the other ranks although they may be inside a step."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        install_sigterm_handler()


def _rendezvous(context: DistributedContext, accelerator: str, run_plan: RunPlan | None) -> RunPlan:
    """Initialize torch's process group, and return the plan of rank zero."""
    environment = context.environment
    assert environment is not None
    os.environ |= {"MASTER_ADDR": environment.main_address, "MASTER_PORT": str(environment.main_port)}
    # Otherwise Lightning sets another number of threads than conf/runtime.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    device = torch.device("cpu")
    if accelerator == "cuda":
        device = torch.device("cuda", environment.local_rank())
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if accelerator == "cuda" else "gloo", rank=context.rank, world_size=context.world_size
    )
    broadcast = [run_plan]
    dist.broadcast_object_list(broadcast, src=0, device=device)
    assert broadcast[0] is not None
    return broadcast[0]


@contextmanager
def _supervise(context: DistributedContext, workers: WorkerProcesses) -> Iterator[None]:
    """Stop all ranks when one of them fails, and name it in a single message, printed by rank zero.

    Raises `EnvironmentFailure` if another rank died.
    """
    finished = threading.Event()
    watch = threading.Thread(target=_watch_workers, args=(workers, finished), daemon=True)
    watch.start()
    seconds = 0.0
    try:
        yield
        seconds = GRACE_SECONDS
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        if isinstance(error, UserError):
            raise
        if not context.is_rank_zero:
            # Give rank zero time to print its message and kill this process; otherwise print the error here.
            if isinstance(error, Exception):
                time.sleep(GRACE_SECONDS)
            raise
        reason = _failed_peer(error, workers) if isinstance(error, Exception) else workers.failed
        if reason:
            raise EnvironmentFailure(_peer_failure_message(reason)) from None
        raise
    finally:
        finished.set()
        workers.stop(seconds)


def _failed_peer(error: BaseException, workers: WorkerProcesses) -> str:
    """Describe the rank whose death caused the error; empty if the error is this rank's own."""
    is_peer_failure = _is_peer_failure(error)
    deadline = time.monotonic() + GRACE_SECONDS
    while is_peer_failure and workers.processes and not workers.failure() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return workers.failure() or ("Another rank died" if is_peer_failure else "")


def _is_peer_failure(error: BaseException) -> bool:
    """Return whether gloo or NCCL raised the error because another rank does not respond."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _peer_failure_message(reason: str) -> str:
    return f"{reason}, which stopped the training; {RESUME_HINT}."


def _watch_workers(workers: WorkerProcesses, finished: threading.Event) -> None:
    """Stop this process if a worker died unnoticed: a GPU would wait for it for minutes."""
    while not finished.wait(POLL_SECONDS):
        if workers.failure():
            if finished.wait(GRACE_SECONDS):
                return
            workers.failed = workers.failure()
            os.kill(os.getpid(), signal.SIGTERM)
            if finished.wait(2 * GRACE_SECONDS):
                return
            log.error(_peer_failure_message(workers.failure()))
            workers.stop(0)
            os._exit(1)
