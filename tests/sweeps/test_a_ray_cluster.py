"""A killed node of a Ray cluster fails only its own trial, and the same command finishes the sweep."""

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

# Interpreter with Ray. It may be in another environment, because Ray's launcher needs an older cloudpickle.
PYTHON = os.environ.get("RAY_PYTHON") or (sys.executable if find_spec("ray") else None)
SWEEP = ("-m", "loss=cross_entropy,slow", "trainer.max_epochs=20", "launcher=ray")
NO_RETRIES = ("hydra.launcher.ray.remote.max_retries=0",)
SECONDS = 120

needs_ray = pytest.mark.skipif(
    PYTHON is None, reason="Ray is not installed, and RAY_PYTHON names no interpreter that has it"
)


class Node:
    """Node of a cluster: the processes of one `ray start`."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        assert PYTHON
        self.log = (folder / f"{time.monotonic_ns()}.txt").open("w")
        self.process = psutil.Popen(
            [str(Path(PYTHON).with_name("ray")), "start", "--block", "--disable-usage-stats", *arguments],
            cwd=folder,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "1"},
        )

    def wait_until_ready(self) -> None:
        """Wait until the node has joined the cluster; nodes that are started before their head is ready give up."""

        def is_ready() -> bool:
            text = Path(self.log.name).read_text(encoding="utf-8")
            assert self.process.poll() is None, text
            return "Ray runtime started" in text

        wait_until(is_ready, "a node is ready")

    def is_training(self) -> bool:
        """Whether a trial is trained on this node."""
        return any(process.name().startswith("ray::_run_job") for process in self.process.children(recursive=True))

    def kill(self) -> None:
        """Kill all processes of the node, as a power failure would."""
        processes = [self.process, *self.process.children(recursive=True)] if self.process.is_running() else []
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=SECONDS)
        self.log.close()


@dataclass
class Cluster:
    """A head without cores for jobs, and nodes with one core each."""

    folder: Path
    address: str
    nodes: list[Node]

    def add_node(self) -> None:
        self.nodes.append(
            Node(self.folder, "--address", self.address, "--num-cpus=1", "--dashboard-agent-listen-port=0")
        )
        self.nodes[-1].wait_until_ready()


@contextmanager
def cluster_of(nodes: int) -> Iterator[Cluster]:
    # Short, because the paths of sockets in it are limited in length.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    port, clients = free_port(), free_port()
    head = Node(
        folder, "--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=0", "--include-dashboard=false",
        f"--temp-dir={folder}", "--dashboard-agent-listen-port=0", f"--ray-client-server-port={clients}",
    )  # fmt: skip
    cluster = Cluster(folder, f"127.0.0.1:{port}", [])
    try:
        head.wait_until_ready()
        for _ in range(nodes):
            cluster.add_node()
        yield cluster
    finally:
        for node in (*cluster.nodes, head):
            node.kill()
        shutil.rmtree(folder, ignore_errors=True)


def wait_until(condition, description: str) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < SECONDS, f"timed out: {description}"
        time.sleep(0.1)


def start_sweep(workspace: Workspace, cluster: Cluster, *arguments: str) -> Command:
    assert PYTHON
    return workspace.start("env", f"RAY_ADDRESS={cluster.address}", PYTHON, "src/train.py", *SWEEP, *arguments)


def kill_the_last_node(workspace: Workspace, cluster: Cluster, sweep: Command) -> None:
    """Wait until one trial has finished and the other is in the middle of its training, and kill the latter's node."""

    def one_is_left() -> bool:
        assert sweep.process.poll() is None, sweep.end()
        runs = [run for run in workspace.runs() if "sweep" not in run.data.tags]
        running = [run for run in runs if run.info.status == "RUNNING"]
        done = [run for run in runs if run.info.status == "FINISHED"]
        busy_nodes = [node for node in cluster.nodes if node.is_training()]
        return bool(done) and len(running) == len(busy_nodes) == 1 and bool(workspace.logged(running[0]))

    wait_until(one_is_left, "one trial is left in the middle of its training")
    (node,) = [node for node in cluster.nodes if node.is_training()]
    node.kill()
    cluster.nodes.remove(node)


@dataclass(frozen=True)
class KilledNodes:
    workspace: Workspace
    output: str
    runs_left: list[Run]
    again: str


def scenario_killed_node(workspace: Workspace) -> KilledNodes:
    """Without retries the sweep ends, and the same command resumes it."""
    with cluster_of(2) as cluster:
        sweep = start_sweep(workspace, cluster, *NO_RETRIES)
        kill_the_last_node(workspace, cluster, sweep)
        output = sweep.end(code=1)
        runs_left = children(workspace, the_sweep(workspace))
        return KilledNodes(workspace, output, runs_left, start_sweep(workspace, cluster, *NO_RETRIES).end())


def assert_complete(killed: KilledNodes) -> None:
    sweep = the_sweep(killed.workspace)
    jobs = children(killed.workspace, sweep)
    assert [job.info.run_id for job in jobs] == [run.info.run_id for run in killed.runs_left] and len(jobs) == 2
    assert {job.info.status for job in [sweep, *jobs]} == {"FINISHED"}
    assert all(killed.workspace.logged(job) == list(range(1, 21)) for job in jobs)


@needs_ray
@pytest.mark.long
def test_a_killed_node_fails_its_trial_only_and_the_same_command_finishes_the_sweep(outcome):
    killed = outcome(scenario_killed_node)
    assert sum(run.info.status == "FINISHED" for run in killed.runs_left) == 1
    assert "type the same command again to finish the sweep" in killed.output
    assert "finished before" in killed.again and "Resuming from checkpoint" in killed.again
    assert_complete(killed)
