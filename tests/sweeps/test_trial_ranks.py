"""Trials of a sweep that train in several processes each, on several (pretended) GPUs or on the cores of a CPU."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from optuna.trial import TrialState
from sweep_runs import in_order, rows, the_sweep, trained
from test_devices import assigned, sweep
from test_search import PRUNED, states

from helpers.workspace import Workspace

EPOCHS = ("trainer.max_epochs=2", "precision.cpu=64-true")
JOBLIB = ("launcher=joblib", "hydra.launcher.n_jobs=2")
OWN = """
from hydra.core.hydra_config import HydraConfig

class KillingOnce(CrossEntropyLoss):
    \"\"\"Kill the second process of the second trial, unless a file exists.\"\"\"
    def forward(self, *inputs):
        is_second = os.environ.get("RANK") == "1" and "seed=1" in HydraConfig.get().overrides.task
        if is_second and not Path("killed").exists():
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(*inputs)

class FailingRank(CrossEntropyLoss):
    \"\"\"Fail in the second process.\"\"\"
    def forward(self, *inputs):
        if os.environ.get("RANK") == "1":
            raise ValueError("own error")
        return super().forward(*inputs)
"""


def with_own_losses(workspace: Workspace) -> Workspace:
    workspace.write("src/own.py", workspace.read("src/own.py") + OWN)
    for name in ("KillingOnce", "FailingRank"):
        text = f"_target_: own.{name}\noutput_activation: softmax\n"
        (workspace.root / "conf" / "loss" / f"{name.lower()}.yaml").write_text(text)
    return workspace


def accuracies(workspace: Workspace) -> list[float]:
    """Return the validation accuracy of each trial, in the order of the trials."""
    return [run.data.metrics["val/accuracy"] for run in in_order(workspace, the_sweep(workspace))]


def scenario_single(workspace: Workspace) -> list[float]:
    workspace.train("-m", *JOBLIB, *EPOCHS, "seed=0,1")
    return accuracies(workspace)


def scenario_pairs(workspace: Workspace) -> tuple[Workspace, str, list[tuple[float, str, str]]]:
    return workspace, *sweep(workspace, "4,5,6,7", *JOBLIB, *EPOCHS, "seed=0,1", "runtime.gpus_per_trial=2")


@pytest.mark.long
def test_each_trial_trains_on_two_gpus_to_the_numbers_of_one(outcome: Callable[..., Any]) -> None:
    workspace, output, steps = outcome(scenario_pairs)
    assert sorted(assigned(workspace, output)) == ["4,5", "6,7"] and sorted(trained(output)) == [0, 1]
    for gpus in ("4,5", "6,7"):
        assert len({process for _, process, seen in steps if seen == gpus}) == 2  # its ranks
    runs = in_order(workspace, the_sweep(workspace))
    assert [run.data.tags["processes"] for run in runs] == ["2", "2"]
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    assert accuracies(workspace) == pytest.approx(outcome(scenario_single), abs=1e-9)
    assert not list((workspace.root / "multirun").rglob(".ranks*"))
    (log, _) = sorted((workspace.root / "multirun").rglob("train.log"))
    assert "Trial 1/2" in log.read_text() and "epoch 2/2" in log.read_text()


def scenario_killed_rank(workspace: Workspace) -> tuple[Workspace, str, str]:
    """A sweep on a CPU in which a rank is killed, then the same command."""
    with_own_losses(workspace)
    command = ("-m", *EPOCHS, "trainer.devices=2", "loss=killingonce", "seed=0,1,2")
    return workspace, workspace.train(*command, code=1), workspace.train(*command)


@pytest.mark.long
def test_a_killed_rank_fails_its_trial_alone_and_the_same_command_finishes_it(outcome: Callable[..., Any]) -> None:
    workspace, first, second = outcome(scenario_killed_rank)
    assert "[1] Rank 1 was killed (SIGKILL), which stopped the training" in first and "Traceback" not in first
    assert sorted(trained(first)) == [0, 2] and sorted(trained(second)) == [1]
    runs = in_order(workspace, the_sweep(workspace))
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    assert len({run.info.run_id for run in runs}) == 3


def scenario_failing_rank(workspace: Workspace) -> tuple[Workspace, str]:
    with_own_losses(workspace)
    return workspace, workspace.train(
        "-m", *EPOCHS, "trainer.devices=2", "loss=failingrank,cross_entropy", "seed=0", code=1
    )


@pytest.mark.long
def test_an_error_in_a_rank_is_the_reason_of_its_trial(outcome: Callable[..., Any]) -> None:
    workspace, output = outcome(scenario_failing_rank)
    assert len(re.findall(r"^\[0\] ValueError: own error \(traceback: ", output, re.MULTILINE)) == 1
    assert "Traceback" not in output and sorted(trained(output)) == [1]
    (row,) = (row for row in rows(workspace, the_sweep(workspace)) if row["status"] == "FAILED")
    assert row["reason"].startswith("ValueError: own error")
    (error,) = (workspace.root / "multirun").rglob("error.txt")
    assert "FailingRank" in error.read_text() or "own.py" in error.read_text()


def scenario_pruned(workspace: Workspace) -> tuple[Workspace, str]:
    return workspace, workspace.train(*PRUNED, "trainer.devices=2", "hydra.sweeper.n_trials=4")


@pytest.mark.long
def test_a_search_prunes_trials_of_several_processes(outcome: Callable[..., Any]) -> None:
    workspace, output = outcome(scenario_pruned)
    assert TrialState.PRUNED in states(workspace) and TrialState.COMPLETE in states(workspace)
    assert output.count("Pruned after epoch") == states(workspace).count(TrialState.PRUNED)


@pytest.mark.long
def test_ctrl_c_ends_all_ranks_of_a_sweep(never_swept: Workspace, tmp_path: Path) -> None:
    copy = never_swept.copy(tmp_path / "copy")
    command = copy.start(
        "setsid", "python", "src/train.py", "-m", *JOBLIB, "trainer.devices=2", "seed=0,1", "trainer.max_epochs=500"
    )
    command.wait_for("epoch 2/")
    processes = psutil.Process(command.process.pid).children(recursive=True)
    assert sum("cifar_pipeline.sweeps.trial_ranks" in process.cmdline() for process in processes) == 4
    os.killpg(command.process.pid, signal.SIGINT)
    command.end(code=130)
    assert psutil.wait_procs(processes, timeout=30)[1] == []
