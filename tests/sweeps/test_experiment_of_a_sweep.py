"""A sweep's parent and trials are in one experiment with its tags, and no tag of the pipeline can be replaced."""

import pytest
from mlflow.entities import Run

from cifar_pipeline.config.schema import RESERVED_TAGS
from helpers.workspace import Workspace

SWEEP = (
    "-m",
    "seed=0,1",
    "mlflow.experiment_name=apart",
    "mlflow.tags={team: vision}",
    "mlflow.description=A comparison",
    "trainer.max_epochs=1",
    "hydra/launcher=joblib",
    "hydra.launcher.n_jobs=2",
)


def scenario_in_its_own_experiment(workspace: Workspace) -> tuple[Workspace, str, str, str]:
    output = workspace.train(*SWEEP)
    refused = workspace.train("-m", "mlflow.experiment_name=a,b", code=2)
    foreign = workspace.run("env", "MLFLOW_RUN_ID=foreign", "python", "src/train.py", *SWEEP, "rerun=true", code=2)
    return workspace, output, refused, foreign


def own_tags(run: Run) -> dict[str, str]:
    """Return the tags that are not the pipeline's or MLflow's."""
    return {key: value for key, value in run.data.tags.items() if not RESERVED_TAGS.fullmatch(key)}


@pytest.mark.long
def test_a_sweep_and_its_trials_are_in_one_experiment_with_its_tags(outcome):
    workspace, _, refused, foreign = outcome(scenario_in_its_own_experiment)
    experiment = workspace.mlflow.get_experiment_by_name("apart")
    runs = list(workspace.mlflow.search_runs([experiment.experiment_id]))
    (parent,) = (run for run in runs if "sweep" in run.data.tags)
    trials = [run for run in runs if run is not parent]
    assert len(trials) == 2 and {run.data.tags["mlflow.parentRunId"] for run in trials} == {parent.info.run_id}
    for run in runs:
        assert run.info.status == "FINISHED" and own_tags(run) == {"team": "vision"}
        assert run.data.tags["mlflow.note.content"] == "A comparison"
    assert workspace.runs() == []  # of the default experiment
    assert "mlflow.experiment_name: the trials of a sweep are in one experiment" in refused
    assert "MLFLOW_RUN_ID names the run foreign" in foreign and "Trial 1" not in foreign
