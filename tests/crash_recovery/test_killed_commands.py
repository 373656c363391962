"""Killed `dvc repro` and sweep commands leave no process behind, and the same command resumes."""

import re
import signal
import time

import psutil
import pytest
from torture import EPOCHS, TRAINING

from helpers.workspace import add_own, make_repository

SECONDS = 20


def descendants(process_id):
    """Return all descendants of a process."""
    return psutil.Process(process_id).children(recursive=True)


def wait_until_gone(processes, seconds=SECONDS):
    """Wait up to `seconds` for the processes to exit, and return those that are still alive."""
    return psutil.wait_procs(processes, timeout=seconds)[1]


@pytest.fixture
def slow(copy):
    """A workspace whose training is slow enough to be killed in the middle."""
    add_own(copy, "")
    for group, option in {
        "loss": "slow",
        "optimizer": "adam",
        "scheduler": "cosine",
        "augmentation": "flip_crop",
    }.items():
        copy.edit("params.yaml", f"\n{group}: null", f"\n{group}: {option}")
    copy.edit("params.yaml", "{max_epochs: 3}", f"{{max_epochs: {EPOCHS}, batch_size: 64}}")
    copy.edit("conf/runtime/default.yaml", "checkpoint_interval_seconds: 60", "checkpoint_interval_seconds: 0.1")
    return copy


def kill_in_the_middle(workspace):
    """Kill `dvc repro` while its stage trains, and check that its processes exit and the run is KILLED."""
    make_repository(workspace)
    workspace.run("python", "src/configure.py")  # what DVC starts runs on its composed.yaml
    repro = workspace.start("dvc", "repro", "--single-item", "train")
    repro.wait_for(f"epoch 2/{EPOCHS}")
    stage = descendants(repro.process.pid)
    repro.process.kill()
    killed = time.monotonic()
    assert not wait_until_gone(stage) and time.monotonic() - killed < SECONDS
    output = repro.end(code=-signal.SIGKILL)
    assert "Traceback" not in output
    assert [run.info.status for run in workspace.runs()] == ["KILLED"]


@pytest.mark.long
def test_a_killed_dvc_leaves_no_training_behind(slow):
    kill_in_the_middle(slow)


@pytest.mark.long
def test_a_killed_dvc_leaves_no_rank_behind(slow):
    slow.edit("params.yaml", "batch_size: 64}", "batch_size: 64, strategy: ddp, devices: 2}")
    kill_in_the_middle(slow)


@pytest.mark.long
def test_after_a_killed_dvc_the_next_one_resumes(slow, undisturbed):
    kill_in_the_middle(slow)
    output = slow.dvc("repro", "--single-item", "train")
    assert "Resuming from checkpoint" in output and f"epoch 1/{EPOCHS}" not in output
    assert slow.model() == undisturbed("eager").workspace.model()
    assert [run.info.status for run in slow.runs()] == ["FINISHED"]


@pytest.mark.long
def test_a_killed_sweep_leaves_no_worker_behind(slow):
    arguments = ("-m", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "trainer.max_epochs=30")
    sweep = slow.start("python", "src/train.py", *arguments)
    sweep.wait_for("epoch 1/30")
    workers = descendants(sweep.process.pid)
    assert workers
    sweep.process.kill()
    assert not wait_until_gone(workers)
    output = sweep.end(code=-signal.SIGKILL)
    assert not re.search("Traceback|epoch 30/", output)


@pytest.mark.long
def test_a_second_training_waits_and_reuses_the_result(slow, undisturbed):
    arguments = ("python", "src/train.py", *TRAINING, "loss=slow")
    first = slow.start(*arguments)
    first.wait_for(f"epoch 1/{EPOCHS}")
    first.process.send_signal(signal.SIGSTOP)  # paused until the second one is there
    second = slow.start(*arguments)
    second.wait_for("waiting for it to end")
    first.process.send_signal(signal.SIGCONT)
    output = first.end() + second.end()
    assert output.count(f"epoch {EPOCHS}/{EPOCHS}") == 1 and "has already finished: its weights are reused" in output
    assert slow.model() == undisturbed("eager").workspace.model()
    assert [run.info.status for run in slow.runs()] == ["FINISHED"]
