"""What `dvc repro` and a sweep start is gone when they are, and the same command goes on."""

import re
import signal
import time

import psutil
import pytest
from torture import EPOCHS, TRAINING

from helpers.workspace import add_own, make_repository

SECONDS = 20


def started_below(process_id):
    """The processes that a command has started, directly or not."""
    return psutil.Process(process_id).children(recursive=True)


def gone(processes, seconds=SECONDS):
    """Those that are still there after so many seconds."""
    return psutil.wait_procs(processes, timeout=seconds)[1]


@pytest.fixture
def slow(copy):
    """A training with time enough to be killed in the middle."""
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


def killed_in_the_middle(workspace):
    """Kill a `dvc repro` while its stage trains; both are gone then, and the run is known as killed."""
    make_repository(workspace)
    workspace.run("python", "src/configure.py")  # what DVC starts runs on its composed.yaml
    repro = workspace.start("dvc", "repro", "--single-item", "train")
    repro.wait_for(f"epoch 2/{EPOCHS}")
    stage = started_below(repro.process.pid)
    repro.process.kill()
    killed = time.monotonic()
    assert not gone(stage) and time.monotonic() - killed < SECONDS
    said = repro.end(code=-signal.SIGKILL)
    assert "Traceback" not in said
    assert [run.info.status for run in workspace.runs()] == ["KILLED"]


def test_a_killed_dvc_leaves_no_training_behind(slow):
    killed_in_the_middle(slow)


@pytest.mark.long
def test_after_a_killed_dvc_the_next_goes_on(slow, undisturbed):
    killed_in_the_middle(slow)
    said = slow.dvc("repro", "--single-item", "train")
    assert "Resuming from checkpoint" in said and f"epoch 1/{EPOCHS}" not in said
    assert slow.model() == undisturbed("eager").workspace.model()
    assert [run.info.status for run in slow.runs()] == ["FINISHED"]


@pytest.mark.long
def test_a_killed_sweep_leaves_no_worker_behind(slow):
    words = ("-m", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "trainer.max_epochs=30")
    sweep = slow.start("python", "src/train.py", *words)
    sweep.wait_for("epoch 1/30")
    workers = started_below(sweep.process.pid)
    assert workers
    sweep.process.kill()
    assert not gone(workers)
    said = sweep.end(code=-signal.SIGKILL)
    assert not re.search("Traceback|epoch 30/", said)


@pytest.mark.long
def test_a_second_training_waits_and_takes_the_result(slow, undisturbed):
    words = ("python", "src/train.py", *TRAINING, "loss=slow")
    first = slow.start(*words)
    first.wait_for(f"epoch 1/{EPOCHS}")
    first.process.send_signal(signal.SIGSTOP)  # it has time until the second one is there
    second = slow.start(*words)
    second.wait_for("waiting for it to end")
    first.process.send_signal(signal.SIGCONT)
    said = first.end() + second.end()
    assert said.count(f"epoch {EPOCHS}/{EPOCHS}") == 1 and "has already finished: its weights are reused" in said
    assert slow.model() == undisturbed("eager").workspace.model()
    assert [run.info.status for run in slow.runs()] == ["FINISHED"]
