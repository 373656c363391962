"""Benchmark section for trainings beside other busy processes, against a plain loop in one thread and in all."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from measure import Row, Workspace, column
from workload_sizes import Sizes

# Steps of a neighbour, more than it does before it is ended.
NEIGHBOUR_STEPS = 10**9
FIXED = "runtime.threads=2"  # what a training that began on a quiet machine of two cores has


@contextmanager
def neighbours(workspace: Workspace, count: int, seconds: float) -> Iterator[None]:
    """Train LeNet in `count` other processes of one thread each, after `seconds` to start."""
    command = [sys.executable, "benchmarks/plain_loop_in_memory.py", "--steps", str(NEIGHBOUR_STEPS)]
    options = ["--batch-size", "32", "--threads", "1"]
    processes = [
        subprocess.Popen([*command, *options], cwd=workspace.root, stdout=subprocess.DEVNULL) for _ in range(count)
    ]
    try:
        time.sleep(seconds)
        yield
    finally:
        for process in processes:
            with suppress(OSError):
                process.kill()
            process.wait()


@dataclass(frozen=True)
class Workload:
    """A training beside busy processes: arguments of ours and of the plain loop, steps, and numbers of neighbours."""

    name: str
    ours: list[str]
    theirs: list[str]
    steps: int
    neighbours: tuple[int, ...] = (2,)


def workloads(sizes: Sizes) -> list[Workload]:
    """Return the trainings that are measured."""

    def workload(network: str, batch: int, steps: int, *options: list[str], **more: Any) -> Workload:
        ours, theirs = options or ([], [])
        return Workload(
            f"{network}, batch {batch}",
            [f"trainer.batch_size={batch}", "runtime.engine=eager", *ours],
            ["--batch-size", str(batch), *theirs],
            steps,
            **more,
        )

    resnet = ["model._target_=models.resnet18"], ["--network", "resnet18"]
    efficientnet = (
        ["model=timm", "model.name=tf_efficientnet_lite0", "model.weights=null"],
        ["--network", "efficientnet"],
    )
    return [
        workload("LeNet", sizes.small_batch, sizes.large_steps * 4, neighbours=sizes.neighbours),
        workload("LeNet", sizes.large_batch, sizes.large_steps),
        workload("ResNet-18", sizes.network_batch, sizes.network_steps, *resnet),
        workload("EfficientNet-Lite0", sizes.fine_tuning_batch, sizes.network_steps, *efficientnet),
    ]


def busy(workspace: Workspace, sizes: Sizes) -> Iterator[Row]:
    """Trainings beside one and two other busy processes."""
    for workload in workloads(sizes):
        for count in workload.neighbours:
            yield from beside(workspace, workload, count, sizes.neighbour_seconds)


def beside(workspace: Workspace, workload: Workload, count: int, seconds: float) -> Iterator[Row]:
    """Measure a training beside `count` processes: started there, and with the threads of a quiet machine."""
    steps = ["--steps", str(workload.steps)]
    # Few, because beside another process a loop with a thread per core may be fifty times slower.
    few = ["--steps", str(max(1, workload.steps // 10))]
    loop = "plain_loop_in_memory"
    with neighbours(workspace, count, seconds):
        started = workspace.run_script("pipeline", *steps, *workload.ours)
        one_thread = workspace.run_script(loop, *steps, *workload.theirs, "--threads", "1")
        disturbed = workspace.run_script("pipeline", *steps, *workload.ours, FIXED)
        all_cores = workspace.run_script(loop, *few, *workload.theirs)
    where = f"beside {count} busy process{'es' if count > 1 else ''}"
    theirs = column([one_thread], "images_per_second")
    note = (
        f"once each; ours chose {started['threads']} thread{'s' if started['threads'] != 1 else ''}; the loop by hand "
        f"with a thread per core did {all_cores['images_per_second']:,.0f} images/s."
    )
    yield Row(
        f"{workload.name}, started {where}; against a loop by hand in one thread",
        "images/s",
        column([started], "images_per_second"),
        theirs,
        at_least=0.5,
        note=note,
    )
    yield Row(
        f"{workload.name}, with two threads {where}; against a loop by hand in one thread",
        "images/s",
        column([disturbed], "images_per_second"),
        theirs,
        at_least=0.25,
        note="as a training that began on a quiet machine and is disturbed later: its number of threads is fixed.",
    )
