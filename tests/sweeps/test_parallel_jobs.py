"""Jobs in other processes belong to the same sweep with each launcher, and no metric is lost."""

from importlib.util import find_spec

import pytest
from sweep_runs import assert_complete, the_sweep, trained

from helpers.workspace import Workspace

EPOCHS = "trainer.max_epochs=2"


def scenario_joblib(workspace: Workspace) -> tuple[Workspace, str]:
    """Two at a time, into a database that does not exist yet."""
    for path in workspace.root.glob("mlflow.db*"):
        path.unlink()
    launcher = ("launcher=joblib",)
    return workspace, workspace.train("-m", "loss=environment,cross_entropy", "seed=0,1", EPOCHS, *launcher)


@pytest.mark.long
def test_joblib_trains_each_trial_once_and_loses_no_metric(outcome):
    workspace, output = outcome(scenario_joblib)
    assert_complete(workspace, output, 4)
    assert sorted(trained(output)) == [0, 1, 2, 3]
    assert "± " in output
    # The parent's id is not in the environment, which is not passed to other machines.
    environments = [path.read_text() for path in workspace.root.glob("environment-*.txt")]
    parent = the_sweep(workspace).info.run_id
    assert environments and not any(parent in text for text in environments)


def scenario_submitit(workspace: Workspace) -> tuple[Workspace, str]:
    launcher = ("launcher=submitit_local",)
    return workspace, workspace.train("-m", "loss=environment,mse", EPOCHS, *launcher)


@pytest.mark.long
def test_submitit_trains_each_trial_and_loses_no_metric(outcome):
    workspace, output = outcome(scenario_submitit)
    assert_complete(workspace, output, 2)
    (environment,) = [path.read_text() for path in workspace.root.glob("environment-*.txt")]
    assert the_sweep(workspace).info.run_id not in environment


def scenario_ray(workspace: Workspace) -> tuple[Workspace, str]:
    return workspace, workspace.train("-m", "loss=cross_entropy,mse", EPOCHS, "launcher=ray")


@pytest.mark.long
@pytest.mark.skipif(find_spec("ray") is None, reason="hydra-ray-launcher is not installed (the extra `ray`)")
def test_ray_trains_each_trial_and_loses_no_metric(outcome):
    assert_complete(*outcome(scenario_ray), 2)


def scenario_eight(workspace: Workspace) -> tuple[Workspace, str]:
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=8")
    seeds = "seed=" + ",".join(map(str, range(16)))
    return workspace, workspace.train("-m", seeds, "trainer.max_epochs=20", *launcher)


@pytest.mark.long
def test_eight_jobs_at_once_lose_no_metric(outcome):
    assert_complete(*outcome(scenario_eight), 16, epochs=20)
