"""Detect the ranks of a distributed training, launch them with torchrun, connect them, and tell why one of them ended.

A command that is typed alone runs torchrun's agent in its own process. The agent starts the ranks with the same command
line, and stops all of them when one fails. Lightning connects them, whoever has started them.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import psutil
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import Strategy
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from cifar_pipeline.utils.console import clear_status
from cifar_pipeline.utils.errors import RESUME_HINT, EnvironmentFailure, UserError
from cifar_pipeline.utils.process import (
    LAUNCH_ID,
    Interrupted,
    install_signal_handlers,
    is_alive,
    is_reported_by_launcher,
    observe_signals,
)
from cifar_pipeline.utils.text import one_line

log = logging.getLogger(__name__)

LAUNCHERS = "torchrun or srun"
# Seconds for which a rank that lost the connection to another one waits for its launcher to stop it.
LAUNCHER_SECONDS = 5.0
# Seconds for which the other ranks outlive a signal, so that rank zero sees that all were alive when it came.
STOP_DELAY = 1.0


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
        """Return whether this process is not a rank, but has to launch the ranks."""
        return self.is_distributed and self.environment is None

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process prints messages, logs to MLflow and writes the result."""
        return self.rank == 0


SINGLE_PROCESS = DistributedContext()


def detect_distributed(options: Mapping[str, Any], accelerator: str) -> DistributedContext:
    """Read the ranks of this training from conf/trainer and the launcher's environment variables.

    Raises:
        UserError: config and launcher contradict each other, or the strategy is not supported here.
    """
    strategy, devices, num_nodes = str(options["strategy"]), options["devices"], options["num_nodes"]
    if strategy == "auto":
        if devices in ("auto", 1) and num_nodes in ("auto", 1):
            return SINGLE_PROCESS
        strategy = "ddp"  # as in Lightning
    gpus = torch.cuda.device_count() if accelerator == "cuda" else 0
    if strategy == "fsdp" and not gpus:
        raise UserError(
            f"trainer.strategy=fsdp shards the weights over GPUs, but the accelerator is {accelerator}; "
            "use trainer=ddp."
        )
    if accelerator == "mps":
        raise UserError(
            "trainer.strategy=ddp supports CPUs and CUDA only; use trainer.devices=1 or runtime.accelerator=cpu."
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


def launch_ranks(context: DistributedContext, arguments: Sequence[str]) -> int:
    """Run Python with these arguments once per rank with torchrun's agent, and return the exit code.

    It is 0 if all ranks have finished, or else that of the first one that failed, which has printed its error.

    Raises:
        Interrupted: SIGTERM or Ctrl-C stopped the training.
        EnvironmentFailure: a rank was killed.
    """
    clear_status()
    logger = logging.getLogger("torch.distributed.elastic")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=context.local_world_size, max_restarts=0, run_id=LAUNCH_ID,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", local_addr="127.0.0.1",
        signals_to_handle="SIGTERM,SIGINT", logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )  # fmt: skip
    failure = None
    try:
        # torchrun replaces `$$` and `${local_rank}` in arguments.
        elastic_launch(config, sys.executable)(*(argument.replace("$", "$$") for argument in arguments))
    except SignalException as stop:
        message = "Stopped; run the same command again to resume from the last checkpoint."
        raise Interrupted(stop.sigval, message) from None
    except ChildFailedError as error:
        failure = error.get_first_failure()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        install_signal_handlers()
    return _exit_code(*failure) if failure else 0


def _exit_code(rank: int, failure: ProcessFailure) -> int:
    """Return the exit code of a failed rank. Raises EnvironmentFailure if a signal ended it."""
    code: int = failure.exitcode
    if 0 < code <= 128:
        return code
    name = signal.Signals(code - 128 if code > 0 else -code).name
    raise EnvironmentFailure(f"Rank {rank} was killed ({name}), which stopped the training; {RESUME_HINT}.")


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


@contextmanager
def connect_ranks(context: DistributedContext, strategy: Strategy, run_plan: RunPlan) -> Iterator[RunPlan]:
    """Let Lightning connect the ranks, and yield the plan of rank zero.

    Args:
        context: of this process.
        strategy: Lightning's, of a trainer that has not started.
        run_plan: of rank zero; on other ranks only its fingerprint counts.

    Raises:
        EnvironmentFailure: another rank died; without a message where the launcher, or rank zero, prints one.
        UserError: this rank has another configuration than rank zero.
    """
    if not context.is_distributed:
        yield run_plan
        return
    # Otherwise Lightning sets another number of threads than conf/runtime.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    peers = _local_peers()
    all_alive: SimpleQueue[bool] = SimpleQueue()
    # By the time that the main thread handles a signal, the others may have ended because of it.
    observe_signals(lambda: all_alive.put(all(map(is_alive, peers))))
    try:
        strategy.setup_environment()
        received = strategy.broadcast(run_plan)
        if received.fingerprint != run_plan.fingerprint:
            raise UserError(
                "The configuration or the code changed while the ranks were starting; run the command again."
            )
        yield received
        dist.destroy_process_group()
    except Interrupted:
        with suppress(Empty):
            if not all_alive.get(timeout=STOP_DELAY):
                raise _peer_failure(context) from None
        if not context.is_rank_zero:
            time.sleep(STOP_DELAY)
        raise
    except Exception as error:
        if not _is_peer_failure(error):
            raise
        with suppress(Interrupted):
            time.sleep(LAUNCHER_SECONDS)
        raise _peer_failure(context) from None
    finally:
        observe_signals(None)


def _local_peers() -> list[psutil.Process]:
    """Return the other ranks on this machine: processes with this one's launcher and command line."""
    own = psutil.Process()
    with suppress(psutil.Error):
        siblings = psutil.Process(os.getppid()).children()
        return [process for process in siblings if process != own and process.cmdline() == own.cmdline()]
    return []


def _is_peer_failure(error: BaseException) -> bool:
    """Return whether gloo or NCCL raised the error because another rank does not respond."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _peer_failure(context: DistributedContext) -> EnvironmentFailure:
    is_reported = is_reported_by_launcher() or not context.is_rank_zero
    return EnvironmentFailure("" if is_reported else f"Another rank died, which stopped the training; {RESUME_HINT}.")


class RestoreSignalHandler(Callback):
    """Replace Lightning's SIGTERM handler, which waits for the other ranks although they may be inside a step."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        install_signal_handlers()
