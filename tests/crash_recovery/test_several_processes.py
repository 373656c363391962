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

from helpers.source_tree import HANGS_AFTER, ROOT
from helpers.tiny_networks import options, save_network, tiny_network
from helpers.workspace import Command, Workspace, sentences

TWO = ("trainer.devices=2",)
# All randomness; an epoch has 20 batches of 64 images and one of 14.
# In 64 bits, so that the order of additions doesn't show.
RECIPE = (*TRAINING, "trainer.eval_batch_size=50", "precision.cpu=64-true")
METRICS = ["train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr"]
SECONDS_TO_END = 30
PORT = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29731"}


def assert_same_numbers(one: Workspace, other: Workspace) -> None:
    """Compare up to the order of floating-point additions."""
    first, second = (pandas.read_csv(workspace.root / "reports" / "history.csv") for workspace in (one, other))
    pandas.testing.assert_frame_equal(first[METRICS], second[METRICS], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def single_process(origin: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with the training of a single process."""
    workspace = origin.copy(tmp_path_factory.mktemp("single process") / "copy")
    workspace.train(*RECIPE)
    return workspace


def start_long_training(workspace: Workspace, *overrides: str) -> tuple[Command, list[psutil.Process]]:
    """Start a long distributed training, and return its ranks once they train."""
    command = workspace.start("python", "src/train.py", *RECIPE, *TWO, "trainer.max_epochs=500", *overrides)
    command.wait_for("epoch 2/")
    return command, ranks(command)


def ranks(command: Command) -> list[psutil.Process]:
    """Return the ranks that a command has launched, rank zero first."""
    children = psutil.Process(command.process.pid).children()
    return sorted(children, key=lambda process: int(process.environ()["RANK"]))


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
    assert [line.split()[0] for line in lines] == ["Data:", "Augmentation:", "Device:", *["epoch"] * 4]
    assert lines[2].startswith("Device: 2 processes, each on cpu")
    assert copy.train(*RECIPE, *TWO).count("has already finished") == 1


@pytest.mark.long
@pytest.mark.parametrize(("before", "after"), [((), TWO), (TWO, ()), (TWO, TWO)])
def test_a_killed_training_resumes_with_any_number_of_ranks(single_process, copy, before, after):
    command = copy.start("python", "src/train.py", *RECIPE, *before)
    command.wait_for("epoch 2/")
    launched = psutil.Process(command.process.pid).children()
    command.process.kill()
    assert_gone(launched)
    command.end(code=-signal.SIGKILL)
    output = copy.train(*RECIPE, *after)
    assert "Resuming from checkpoint" in output
    assert_same_numbers(single_process, copy)
    assert [run.info.status for run in copy.runs()] == ["FINISHED"]


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_stops_all_with_one_message(copy, rank):
    command, processes = start_long_training(copy)
    processes[rank].kill()
    output = command.end(code=1)
    last = sentences(output)[-1]
    assert last.startswith(f"Rank {rank} was killed (SIGKILL), which stopped the training")
    assert output.count("stopped the training") == 1
    assert "Traceback" not in output
    assert_gone(processes)
    assert status(copy) == "FAILED"


@pytest.mark.long
def test_a_killed_command_leaves_no_rank_behind_and_no_message(copy):
    command, processes = start_long_training(copy)
    command.process.kill()
    assert_gone(processes)
    output = command.end(code=-signal.SIGKILL)
    assert all(line.startswith("epoch") for line in output.partition("epoch 2/")[2].splitlines()[1:]), output
    assert status(copy) == "KILLED"


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_training_of_two_ranks_ends_with_one_line(copy, number, code):
    command, processes = start_long_training(copy)
    command.process.send_signal(number)
    output = command.end(code=code)
    assert "run the same command again to resume from the last checkpoint" in sentences(output)[-1]
    assert output.count("Stopped") == 1
    assert "Traceback" not in output
    assert_gone(processes)
    assert status(copy) == "KILLED"


# Fails in one rank, or in all, in the second epoch.
FAILING = """
import os
from torch.nn import CrossEntropyLoss


class Failing(CrossEntropyLoss):
    calls = 0

    def forward(self, *inputs):
        self.calls += 1
        if self.calls > 30 and os.environ["RANK"] in {ranks}:
            raise {error}
        return super().forward(*inputs)
"""


@pytest.mark.long
@pytest.mark.parametrize(("failing", "error", "code"), [
    ("1", "ValueError('own error')", 1),
    ("01", "ValueError('own error')", 1),
    ("1", "UserError('own error')", 2),
])  # fmt: skip
def test_the_error_of_a_rank_is_shown_once_and_ends_all_with_its_code(copy, failing, error, code):
    source = "from cifar_pipeline.utils.errors import UserError" + FAILING.format(ranks=list(failing), error=error)
    copy.write("src/own.py", source)
    copy.write("conf/loss/failing.yaml", "_target_: own.Failing\noutput_activation: softmax\n")
    output = copy.train(*RECIPE, *TWO, "loss=failing", code=code)
    assert len(re.findall(r"^.*own error$", output, re.MULTILINE)) == 1
    assert output.count("Traceback") == (error.startswith("ValueError"))
    assert "stopped the training" not in output
    assert status(copy) == "FAILED"


@pytest.mark.long
def test_a_mistake_is_refused_before_a_rank_is_started(copy):
    output = copy.train(*RECIPE, *TWO, "trainer.micro_batch_size=3", code=2)
    assert len(sentences(output)) == 1


@pytest.mark.long
def test_torchrun_trains_to_the_numbers_of_one_process(single_process, copy):
    torchrun = ("torchrun", "--standalone", "--nproc-per-node", "2", "src/train.py", *RECIPE, "trainer=ddp")
    output = copy.run(*torchrun)
    assert_same_numbers(single_process, copy)
    assert [run.info.status for run in copy.runs()] == ["FINISHED"]
    assert output.count("epoch 4/4") == 1
    assert copy.run(*torchrun).count("has already finished") == 1
    copy.run(*torchrun, "trainer.devices=3", code=1)


@pytest.mark.long
def test_torchrun_and_rank_zero_report_a_killed_rank(copy):
    command = copy.start(
        "torchrun", "--standalone", "--nproc-per-node", "2", "src/train.py", *RECIPE, "trainer=ddp",
        "trainer.max_epochs=500",
    )  # fmt: skip
    command.wait_for("epoch 2/")
    processes = ranks(command)
    processes[1].kill()
    output = command.end(code=1)
    assert output.count("Another rank died, which stopped the training") == 1
    assert_gone(processes)
    assert status(copy) == "FAILED"


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
    first, second = (process.communicate(timeout=HANGS_AFTER)[0] for process in started)
    assert [process.returncode for process in started] == [0, 0], first + second
    assert first.count("epoch 4/4") == 1
    assert second == ""
    assert_same_numbers(single_process, copy)


@pytest.mark.long
def test_a_killed_task_of_slurm_ends_the_other_one(copy):
    command = ["python", "src/train.py", *RECIPE, "trainer=ddp", "trainer.max_epochs=500"]
    first, second = tasks(copy, command, 1, 2)
    assert first.stdout
    assert any("epoch 2/" in line for line in first.stdout)
    second.kill()
    output = first.communicate(timeout=SECONDS_TO_END)[0]
    second.communicate()
    assert first.returncode == 1
    assert output.count("Another rank died, which stopped the training") == 1
    assert "Traceback" not in output
    assert status(copy) == "FAILED"


def test_the_slurm_job_file_requests_what_the_training_needs():
    subprocess.run(["bash", "-n"], input=job(), text=True, check=True)
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", job(), re.MULTILINE))
    # Lightning's Slurm environment needs tasks per node, and treats jobs with these names as interactive.
    assert int(options["ntasks-per-node"]) == int(options["gpus-per-node"])
    assert options["job-name"] not in ("bash", "interactive")
    assert options["signal"].startswith("TERM@")


@pytest.mark.long
def test_a_frozen_network_has_the_same_head_from_two_processes(origin: Workspace, tmp_path: Path) -> None:
    """One process trains it on features that are computed once, two of them on images."""
    one = origin.copy(tmp_path / "one")
    save_network(tiny_network(), one.root / "pretrained" / "net.safetensors")
    two = one.copy(tmp_path / "two")
    weights = options(Path("pretrained/net.safetensors"))
    recipe = (*RECIPE, *weights, "model.input_size=32", "augmentation=flip", "finetune=head", "trainer.max_epochs=2")
    one.train(*recipe)
    said = two.train(*recipe, *TWO)
    assert "Features are computed anew in each epoch: several processes share each batch." in said
    assert "batch norm is not synchronized" not in said
    assert_same_numbers(one, two)
    refused = two.train(*recipe, *TWO, "finetune=gradual", code=2)
    assert "finetune: freezing layers for some epochs" in sentences(refused)[-1]
