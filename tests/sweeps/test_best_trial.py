"""The printed command makes the best trial what the pipeline runs, with the same weights."""

import re
import shlex
import shutil
from dataclasses import dataclass

import pytest
from cifar_pipeline.config.edit import choose
from sweep_runs import children, folder, the_sweep, trials

from cifar_pipeline.utils.errors import UserError
from helpers.workspace import Workspace, make_repository

SWEEP = ("-m", "optimizer.lr=0.001,0.03", "trainer.max_epochs=3")


@dataclass(frozen=True)
class Won:
    workspace: Workspace
    weights: bytes
    command: list[str]
    said: str


def swept(workspace: Workspace) -> Won:
    """A sweep in a repository, up to its command."""
    make_repository(workspace)
    said = workspace.train(*SWEEP)
    name, command = re.findall(r"^To make (.*) the pipeline's choice.*\n  (dvc exp run .*)$", said, re.MULTILINE)[0]
    sweep = the_sweep(workspace)
    (best,) = [job for job in children(workspace, sweep) if job.info.run_name == name]
    number = trials(sweep).index(best.info.run_id)
    weights = workspace.model(f"{folder(said)}/{number}/models")
    return Won(workspace, weights, shlex.split(command), said)


def scenario_retrained(workspace: Workspace) -> Won:
    won = swept(workspace)
    shutil.rmtree(workspace.root / ".cache" / "trainings")
    return Won(workspace, won.weights, won.command, workspace.run(*won.command))


@pytest.mark.long
def test_the_winners_experiment_trains_to_the_same_weights(outcome):
    won = outcome(scenario_retrained)
    assert "epoch 3/3" in won.said
    assert "++overrides.runtime.threads=1" in won.command
    assert won.workspace.model() == won.weights
    sweep = the_sweep(won.workspace)
    # It is the trial's own run, which has the result on the test part now.
    best = next(job for job in children(won.workspace, sweep) if "test/accuracy" in job.data.metrics)
    assert best.data.metrics["test/accuracy"] == won.workspace.json("reports/metrics.json")["test"]["accuracy"]
    assert best.info.run_id == won.workspace.json("models/run.json")["id"] and best.info.status == "FINISHED"
    assert len(children(won.workspace, sweep)) == 2


def scenario_taken(workspace: Workspace) -> Won:
    won = swept(workspace)
    return Won(workspace, won.weights, won.command, workspace.run(*won.command))


@pytest.mark.long
def test_the_winners_experiment_takes_the_weights_that_are_there(outcome):
    won = outcome(scenario_taken)
    assert "has finished before: its weights are taken" in won.said and "epoch" not in won.said
    assert won.workspace.model() == won.weights


def test_choices_are_written_into_params_with_its_comments(project):
    before = (project.folder / "params.yaml").read_text()
    choose(["optimizer=adam", "optimizer.lr=0.002", "optimizer.betas=[0.8,0.9]", "seed=3"])
    after = (project.folder / "params.yaml").read_text()
    assert [line for line in after.splitlines() if line.startswith("#")] == [
        line for line in before.splitlines() if line.startswith("#")
    ]
    assert "\noptimizer: adam\n" in after and "\nloss: null\n" in after and "\nseed: 3\n" in after
    config = project.compose()
    assert (config.optimizer.lr, list(config.optimizer.betas), config.seed) == (0.002, [0.8, 0.9], 3)
    assert config.optimizer._target_ == "torch.optim.Adam"


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("optimizer=nope", "optimizer=nope: conf/optimizer/ has no file of this name"),
        ("optimizer.lr=-1", "optimizer.lr=-1 is not allowed; it must be a number above 0."),
        ("optimizer.lrr=1", "optimizer.lrr: the chosen option (torch.optim.SGD) has no such key"),
        ("adam", "adam: syntax error"),
    ],
)
def test_bad_choices_are_refused_and_nothing_is_written(project, setting, sentence):
    before = (project.folder / "params.yaml").read_text()
    with pytest.raises(UserError) as refused:
        choose([setting])
    assert str(refused.value).startswith(sentence) and "\n" not in str(refused.value)
    assert (project.folder / "params.yaml").read_text() == before
