"""The beginning and the end of a training in several processes: started, met, told what to do, and ended together.

The others are started only where nobody else has (torchrun, Slurm), by the same command; what they need to find each
other stands in the environment, in the variables that Lightning reads.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer

from cifar_pipeline.console import Refusal, complain
from cifar_pipeline.faults import GOES_ON, Fault
from cifar_pipeline.interruption import listen
from cifar_pipeline.training.processes import Processes

SECONDS_BETWEEN = 0.2
# How long the others may take to end by themselves, and this one to notice that one of them is gone.
SECONDS_TO_END = 5.0


@dataclass(frozen=True)
class Start:
    """What the first process says to the others: which training, from which checkpoint on, and whether at all."""

    identity: str
    checkpoint: Path | None = None
    is_needed: bool = True


@dataclass
class Others:
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


def _start_others(processes: Processes) -> tuple[Processes, Others]:
    """Start the other processes of this machine with the command of this one, unless somebody has started them."""
    if processes.environment is not None:
        return processes, Others()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "NODE_RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(processes.count),
    }  # fmt: skip
    command = [sys.executable, *sys.argv]
    others = Others()
    for rank in range(1, processes.count):
        others.started.append(subprocess.Popen(command, env={**os.environ, "LOCAL_RANK": str(rank)}))
    return replace(processes, environment=LightningEnvironment()), others


@contextmanager
def together(
    processes: Processes, accelerator: str, identity: str, start: Start | None
) -> Iterator[tuple[Processes, Start]]:
    """Have all processes of a training in the block, with what the first one says, and let none outlive it.

    Only the first one has a `start` to tell the others; `identity` is that of the training which this one is about.

    Raises `Fault` where another one ended badly, and `Refusal` where this one read another configuration.
    """
    if not processes.are_several:
        assert start is not None
        yield processes, start
        return
    processes, others = _start_others(processes)
    with _ending_together(processes, others):
        told = _meet(processes, accelerator, start)
        if told.identity != identity:
            raise Refusal("The configuration or the code was changed while the processes started: start it again.")
        yield processes, told
        dist.destroy_process_group()


def dismiss(processes: Processes, accelerator: str, identity: str) -> None:
    """Tell processes that somebody else has started that there is nothing to do."""
    if processes.environment is not None:
        with together(processes, accelerator, identity, Start(identity, is_needed=False)):
            pass


class OwnSignals(Callback):
    """Takes SIGTERM back from Lightning, whose handler waits for the other processes, which may be in a step."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        listen()


def _meet(processes: Processes, accelerator: str, start: Start | None) -> Start:
    """Wait for all processes, and hand to each what the first one says."""
    environment = processes.environment
    assert environment is not None
    os.environ |= {"MASTER_ADDR": environment.main_address, "MASTER_PORT": str(environment.main_port)}
    # Lightning would choose another number of threads than conf/machine.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    device = torch.device("cpu")
    if accelerator == "cuda":
        device = torch.device("cuda", environment.local_rank())
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if accelerator == "cuda" else "gloo", rank=processes.rank, world_size=processes.count
    )
    words = [start]
    dist.broadcast_object_list(words, src=0, device=device)
    assert words[0] is not None
    return words[0]


@contextmanager
def _ending_together(processes: Processes, others: Others) -> Iterator[None]:
    """Let no process outlive the others, and say in one sentence which of them broke off the block.

    Raises `Fault` where another one ended badly.
    """
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(others, over), daemon=True)
    watch.start()
    seconds = 0.0
    try:
        yield
        seconds = SECONDS_TO_END
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        if isinstance(error, Refusal):
            raise
        if not processes.is_first:
            # The first one tells, and ends this one; what nobody ends was its own fault, and is told after a while.
            if isinstance(error, Exception):
                time.sleep(SECONDS_TO_END)
            raise
        reason = _reason(error, others) if isinstance(error, Exception) else others.missed
        if reason:
            raise Fault(f"{reason}, and the training ends with it; {GOES_ON}.") from None
        raise
    finally:
        over.set()
        others.end(seconds)


def _reason(error: BaseException, others: Others) -> str:
    """Which other process broke off the training; empty where the error is this one's own."""
    is_lost = _is_lost(error)
    until = time.monotonic() + SECONDS_TO_END
    while is_lost and others.started and not others.broken() and time.monotonic() < until:
        time.sleep(SECONDS_BETWEEN)
    return others.broken() or ("Another process of this training is gone" if is_lost else "")


def _is_lost(error: BaseException) -> bool:
    """Whether it is what gloo and NCCL say when another process doesn't answer any more."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _watch(others: Others, over: threading.Event) -> None:
    """Stop this process where another one is gone and it doesn't notice: a GPU waits for it for minutes."""
    while not over.wait(SECONDS_BETWEEN):
        if others.broken():
            if over.wait(SECONDS_TO_END):
                return
            others.missed = others.broken()
            os.kill(os.getpid(), signal.SIGTERM)
            if over.wait(2 * SECONDS_TO_END):
                return
            complain(f"{others.broken()}, and the training ends with it; {GOES_ON}.")
            others.end(0)
            os._exit(1)
