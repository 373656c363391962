"""A training in several processes is one training: one result, one run, one voice, and no process outlives another."""

import re
import subprocess
from pathlib import Path

import pandas
import pytest
from torture import TRAINING
from workspace import Workspace, sentences

ROOT = Path(__file__).parents[2]
TWO = ("trainer=ddp", "trainer.devices=2")
# All that is random; an epoch of 20 batches of 64 and one of 14 images.
RECIPE = (*TRAINING, "trainer.eval_batch_size=50")
METRICS = ["train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr"]


def assert_same_numbers(one: Workspace, other: Workspace) -> None:
    """They may differ by the order in which floats were added up."""
    first, second = (pandas.read_csv(workspace.root / "reports" / "history.csv") for workspace in (one, other))
    pandas.testing.assert_frame_equal(first[METRICS], second[METRICS], rtol=2e-3, atol=2e-3)


@pytest.fixture(scope="module")
def alone(origin: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The training by one process."""
    workspace = origin.copy(tmp_path_factory.mktemp("alone") / "copy")
    workspace.train(*RECIPE)
    return workspace


def test_two_processes_make_the_training_of_one_in_one_run_and_with_one_voice(alone, copy):
    said = copy.train(*RECIPE, *TWO)
    assert_same_numbers(alone, copy)
    (run,) = copy.runs()
    assert (run.info.status, run.data.tags["processes"]) == ("FINISHED", "2")
    assert [run.data.tags["identity"] for run in alone.runs()] == [run.data.tags["identity"]]
    for metric in METRICS:
        assert [item.step for item in copy.mlflow.get_metric_history(run.info.run_id, metric)] == [1, 2, 3, 4]
    lines = sentences(said)
    assert [line.split()[0] for line in lines] == ["Data:", "Device:", *["epoch"] * 4]
    assert lines[1].startswith("Device: 2 processes, each on cpu")


def job() -> str:
    return (ROOT / "docs" / "jobs" / "slurm.sh").read_text()


def test_the_job_file_is_a_script_that_asks_slurm_for_what_the_training_needs():
    subprocess.run(["bash", "-n"], input=job(), text=True, check=True)
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", job(), re.MULTILINE))
    # Lightning's environment for Slurm asks for tasks by node, and a job of this name is none of the interactive ones.
    assert int(asked["ntasks-per-node"]) == int(asked["gpus-per-node"])
    assert asked["job-name"] not in ("bash", "interactive")
    assert asked["signal"].startswith("TERM@")
