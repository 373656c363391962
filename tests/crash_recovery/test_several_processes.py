"""A distributed training has one result, one run and one output, and no rank outlives another."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pandas
import psutil
import pytest
from torture import TRAINING

from helpers.source_tree import ROOT
from helpers.workspace import Command, Workspace, sentences

TWO = ("trainer=ddp", "trainer.devices=2")
# All randomness; an epoch has 20 batches of 64 images and one of 14.
RECIPE = (*TRAINING, "trainer.eval_batch_size=50")
METRICS = ["train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr"]
SECONDS_TO_END = 30
PORT = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29731"}


def assert_same_numbers(one: Workspace, other: Workspace) -> None:
    """Compare up to the order of floating-point additions."""
    first, second = (pandas.read_csv(workspace.root / "reports" / "history.csv") for workspace in (one, other))
    pandas.testing.assert_frame_equal(first[METRICS], second[METRICS], rtol=2e-3, atol=2e-3)


@pytest.fixture(scope="module")
def single_process(origin: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with the training of a single process."""
    workspace = origin.copy(tmp_path_factory.mktemp("single process") / "copy")
    workspace.train(*RECIPE)
    return workspace


def start_long_training(
    workspace: Workspace, *arguments: str, until: str = "epoch 2/"
) -> tuple[Command, list[psutil.Process]]:
    """Start a long distributed training, and return its processes, rank zero first."""
    command = workspace.start(*arguments, "python", "src/train.py", *RECIPE, *TWO, "trainer.max_epochs=500")
    command.wait_for(until)
    rank_zero = psutil.Process(command.process.pid)
    return command, [rank_zero, *rank_zero.children(recursive=True)]


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, SECONDS_TO_END)
    for process in alive:
        process.kill()
    assert not alive


def status(workspace: Workspace) -> str:
    return str(workspace.runs()[-1].info.status)


@pytest.mark.long
def test_two_ranks_train_to_the_numbers_of_one_in_one_run_with_one_output(single_process, copy):
    output = copy.train(*RECIPE, *TWO)
    assert_same_numbers(single_process, copy)
    (run,) = copy.runs()
    assert (run.info.status, run.data.tags["processes"]) == ("FINISHED", "2")
    assert [run.data.tags["fingerprint"] for run in single_process.runs()] == [run.data.tags["fingerprint"]]
    for metric in METRICS:
        assert copy.logged(run, metric) == [1, 2, 3, 4]
    lines = sentences(output)
    assert [line.split()[0] for line in lines] == ["Data:", "Device:", *["epoch"] * 4]
    assert lines[1].startswith("Device: 2 processes, each on cpu")


@pytest.mark.long
@pytest.mark.parametrize(("before", "after"), [((), TWO), (TWO, ()), (TWO, TWO)])
def test_a_killed_training_resumes_with_any_number_of_ranks(single_process, copy, before, after):
    command = copy.start("python", "src/train.py", *RECIPE, *before)
    command.wait_for("epoch 2/")
    processes = [command.process, *psutil.Process(command.process.pid).children()]
    command.process.kill()
    assert_gone([psutil.Process(process.pid) for process in processes[1:]])
    command.end(code=-signal.SIGKILL)
    output = copy.train(*RECIPE, *after)
    assert "Resuming from checkpoint" in output
    assert_same_numbers(single_process, copy)
    assert [run.info.status for run in copy.runs()] == ["FINISHED"]


@pytest.mark.long
def test_a_killed_rank_stops_all_with_one_message(copy):
    command, processes = start_long_training(copy)
    processes[1].kill()
    output = command.end(code=1)
    assert "Rank 1 was killed (SIGKILL), which stopped the training" in output
    assert "Traceback" not in output
    assert_gone(processes)
    assert status(copy) == "FAILED"


@pytest.mark.long
def test_a_killed_rank_zero_leaves_no_rank_behind_and_no_message(copy):
    command, processes = start_long_training(copy)
    command.process.kill()
    assert_gone(processes[1:])
    output = command.end(code=-signal.SIGKILL)
    assert all(line.startswith("epoch") for line in output.partition("epoch 2/")[2].splitlines()[1:]), output


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_training_of_two_ranks_ends_with_one_line(copy, number, code):
    command, processes = start_long_training(copy)
    for process in processes if number == signal.SIGINT else processes[:1]:  # a terminal sends Ctrl-C to all processes
        process.send_signal(number)
    output = command.end(code=code)
    assert "run the same command again to resume from the last checkpoint" in sentences(output)[-1]
    assert output.count("Stopped") == 1
    assert "Traceback" not in output
    assert_gone(processes)
    assert status(copy) == "KILLED"


@pytest.mark.long
def test_a_sweep_refuses_distributed_trials_and_starts_none_twice(copy):
    output = copy.train("-m", *RECIPE, *TWO, "seed=1,2", code=1)
    assert output.count("is not supported in a sweep") >= 2
    assert not [run for run in copy.runs() if run.info.status == "FINISHED" and "fingerprint" in run.data.tags]


@pytest.mark.long
def test_torchrun_trains_to_the_numbers_of_one_process(single_process, copy):
    torchrun = ("torchrun", "--standalone", "--nproc-per-node", "2", "src/train.py", *RECIPE, "trainer=ddp")
    output = copy.run(*torchrun)
    assert_same_numbers(single_process, copy)
    assert [run.info.status for run in copy.runs()] == ["FINISHED"]
    assert output.count("epoch 4/4") == 1
    assert copy.run(*torchrun).count("has already finished") == 1
    copy.run(*torchrun, "trainer.devices=3", code=1)


def tasks(workspace: Workspace, arguments: list[str], nodes: int, per_node: int) -> list[subprocess.Popen[str]]:
    """Start `arguments` in as many tasks as srun would, with Slurm's environment variables."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return [
        subprocess.Popen(
            arguments,
            cwd=workspace.root,
            env=environment | PORT | {
                "PATH": path, "OMP_NUM_THREADS": "1", "CIFAR10_SOURCE": workspace.source, "PYTHONPATH": "",
                "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "cifar-pipeline",
                "SLURM_NTASKS": str(nodes * per_node), "SLURM_NNODES": str(nodes),
                "SLURM_NTASKS_PER_NODE": str(per_node), "SLURM_PROCID": str(task),
                "SLURM_LOCALID": str(task % per_node), "SLURM_NODEID": str(task // per_node),
            },
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for task in range(nodes * per_node)
    ]  # fmt: skip


def job() -> str:
    return (ROOT / "docs" / "jobs" / "slurm.sh").read_text()


@pytest.mark.long
@pytest.mark.parametrize(("nodes", "per_node"), [(1, 2), (2, 1)])
def test_the_command_of_the_slurm_job_file_trains(single_process, copy, nodes, per_node):
    (line,) = (line for line in job().splitlines() if line.startswith("srun "))
    command = shlex.split(line.replace('"$@"', shlex.join(RECIPE)))
    started = tasks(copy, command[command.index("python") :], nodes, per_node)
    first, second = (process.communicate(timeout=240)[0] for process in started)
    assert [process.returncode for process in started] == [0, 0], first + second
    assert first.count("epoch 4/4") == 1
    assert second == ""
    assert_same_numbers(single_process, copy)


def test_the_slurm_job_file_requests_what_the_training_needs():
    subprocess.run(["bash", "-n"], input=job(), text=True, check=True)
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", job(), re.MULTILINE))
    # Lightning's Slurm environment needs tasks per node, and treats jobs with these names as interactive.
    assert int(options["ntasks-per-node"]) == int(options["gpus-per-node"])
    assert options["job-name"] not in ("bash", "interactive")
    assert options["signal"].startswith("TERM@")
