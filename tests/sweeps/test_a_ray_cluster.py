"""A node of a Ray cluster that is killed costs a sweep nothing that the same command doesn't bring back."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from mlflow.entities import Run
from sweep_runs import children, the_sweep

from helpers.servers import free_port
from helpers.workspace import Command, Workspace

# Where Ray is not in this environment, RAY_PYTHON's interpreter runs it: Ray's launcher wants an older cloudpickle.
PYTHON = os.environ.get("RAY_PYTHON") or (sys.executable if find_spec("ray") else None)
SWEEP = ("-m", "loss=cross_entropy,slow", "trainer.max_epochs=20", "launcher=ray")
ONCE = ("hydra.launcher.ray.remote.max_retries=0",)
SECONDS = 120

needs_ray = pytest.mark.skipif(PYTHON is None, reason="Ray is not here: RAY_PYTHON names no interpreter that has it")


class Node:
    """A node of the cluster: the processes of one `ray start`."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        assert PYTHON
        self.said = (folder / f"{time.monotonic_ns()}.txt").open("w")
        self.process = psutil.Popen(
            [str(Path(PYTHON).with_name("ray")), "start", "--block", "--disable-usage-stats", *arguments],
            cwd=folder,
            stdout=self.said,
            stderr=subprocess.STDOUT,
            env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "1"},
        )

    def wait_for(self) -> None:
        """Return once it is a part of the cluster: nodes that come to a head too early give up."""

        def has_begun() -> bool:
            told = Path(self.said.name).read_text()
            assert self.process.poll() is None, told
            return "Ray runtime started" in told

        wait(has_begun, "a node")

    def is_at_work(self) -> bool:
        """Whether a trial is trained here."""
        return any(process.name().startswith("ray::_run_job") for process in self.process.children(recursive=True))

    def kill(self) -> None:
        """End it as a power cut would."""
        processes = [self.process, *self.process.children(recursive=True)] if self.process.is_running() else []
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=SECONDS)
        self.said.close()


@dataclass
class Cluster:
    """A head that trains nothing, and nodes with one core each."""

    folder: Path
    address: str
    nodes: list[Node]

    def grow(self) -> None:
        self.nodes.append(
            Node(self.folder, "--address", self.address, "--num-cpus=1", "--dashboard-agent-listen-port=0")
        )
        self.nodes[-1].wait_for()


@contextmanager
def cluster_of(nodes: int) -> Iterator[Cluster]:
    # Sockets lie in it, whose paths may not be long.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    port, clients = free_port(), free_port()
    head = Node(
        folder, "--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=0", "--include-dashboard=false",
        f"--temp-dir={folder}", "--dashboard-agent-listen-port=0", f"--ray-client-server-port={clients}",
    )  # fmt: skip
    cluster = Cluster(folder, f"127.0.0.1:{port}", [])
    try:
        head.wait_for()
        for _ in range(nodes):
            cluster.grow()
        yield cluster
    finally:
        for node in (*cluster.nodes, head):
            node.kill()
        shutil.rmtree(folder, ignore_errors=True)


def wait(holds, for_what: str) -> None:
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < SECONDS, f"there never was {for_what}"
        time.sleep(0.1)


def started(workspace: Workspace, cluster: Cluster, *words: str) -> Command:
    assert PYTHON
    return workspace.start("env", f"RAY_ADDRESS={cluster.address}", PYTHON, "src/train.py", *SWEEP, *words)


def kill_the_one_left(workspace: Workspace, cluster: Cluster, sweep: Command) -> None:
    """Kill the node of the one trial that still trains, in the middle, once the other has finished."""

    def in_the_middle() -> bool:
        assert sweep.process.poll() is None, sweep.end()
        runs = [run for run in workspace.runs() if "sweep" not in run.data.tags]
        running = [run for run in runs if run.info.status == "RUNNING"]
        done = [run for run in runs if run.info.status == "FINISHED"]
        at_work = [node for node in cluster.nodes if node.is_at_work()]
        return bool(done) and len(running) == len(at_work) == 1 and bool(workspace.logged(running[0]))

    wait(in_the_middle, "a trial left alone in the middle of its training")
    (node,) = [node for node in cluster.nodes if node.is_at_work()]
    node.kill()
    cluster.nodes.remove(node)


@dataclass(frozen=True)
class KilledNodes:
    workspace: Workspace
    said: str
    left: list[Run]
    again: str


def scenario_killed_node(workspace: Workspace) -> KilledNodes:
    """One try for each trial: the sweep ends, and the same command goes on."""
    with cluster_of(2) as cluster:
        sweep = started(workspace, cluster, *ONCE)
        kill_the_one_left(workspace, cluster, sweep)
        said = sweep.end(code=1)
        left = children(workspace, the_sweep(workspace))
        return KilledNodes(workspace, said, left, started(workspace, cluster, *ONCE).end())


def is_whole(killed: KilledNodes) -> None:
    sweep = the_sweep(killed.workspace)
    jobs = children(killed.workspace, sweep)
    assert [job.info.run_id for job in jobs] == [run.info.run_id for run in killed.left] and len(jobs) == 2
    assert {job.info.status for job in [sweep, *jobs]} == {"FINISHED"}
    assert all(killed.workspace.logged(job) == list(range(1, 21)) for job in jobs)


@needs_ray
@pytest.mark.long
def test_a_killed_node_costs_its_trial_only_and_the_same_command_finishes(outcome):
    killed = outcome(scenario_killed_node)
    assert sum(run.info.status == "FINISHED" for run in killed.left) == 1
    assert "the same command typed again does the rest" in killed.said
    assert "finished before" in killed.again and "Going on from the checkpoint" in killed.again
    is_whole(killed)
