"""Jobs in other processes are the same sweep, whoever launches them, and nothing of them is lost."""

from importlib.util import find_spec

import pytest
from sweep_runs import is_whole, the_sweep, trained

from helpers.workspace import Workspace

EPOCHS = "trainer.max_epochs=2"


def scenario_joblib(workspace: Workspace) -> tuple[Workspace, str]:
    """Two at a time, into a database that is not there yet."""
    for path in workspace.root.glob("mlflow.db*"):
        path.unlink()
    launcher = ("launcher=joblib",)
    return workspace, workspace.train("-m", "loss=telling,cross_entropy", "seed=0,1", EPOCHS, *launcher)


@pytest.mark.long
def test_joblib_trains_each_trial_once_and_loses_no_metric(outcome):
    workspace, said = outcome(scenario_joblib)
    is_whole(workspace, said, 4)
    assert sorted(trained(said)) == [0, 1, 2, 3]
    assert "± " in said
    # The link to the parent is not in the environment, which other machines would not get.
    told = [path.read_text() for path in workspace.root.glob("environment-*.txt")]
    parent = the_sweep(workspace).info.run_id
    assert told and not any(parent in text for text in told)


def scenario_submitit(workspace: Workspace) -> tuple[Workspace, str]:
    launcher = ("launcher=submitit_local",)
    return workspace, workspace.train("-m", "loss=telling,mse", EPOCHS, *launcher)


@pytest.mark.long
def test_submitit_trains_each_trial_and_loses_no_metric(outcome):
    workspace, said = outcome(scenario_submitit)
    is_whole(workspace, said, 2)
    (told,) = [path.read_text() for path in workspace.root.glob("environment-*.txt")]
    assert the_sweep(workspace).info.run_id not in told


def scenario_ray(workspace: Workspace) -> tuple[Workspace, str]:
    return workspace, workspace.train("-m", "loss=cross_entropy,mse", EPOCHS, "launcher=ray")


@pytest.mark.long
@pytest.mark.skipif(find_spec("ray") is None, reason="hydra-ray-launcher is not installed (the extra `ray`)")
def test_ray_trains_each_trial_and_loses_no_metric(outcome):
    is_whole(*outcome(scenario_ray), 2)


def scenario_eight(workspace: Workspace) -> tuple[Workspace, str]:
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=8")
    seeds = "seed=" + ",".join(map(str, range(16)))
    return workspace, workspace.train("-m", seeds, "trainer.max_epochs=20", *launcher)


@pytest.mark.long
def test_eight_jobs_at_once_lose_no_metric(outcome):
    is_whole(*outcome(scenario_eight), 16, epochs=20)
