"""A sweep ranks its trials by the monitored metric of the weights that would be evaluated, and a search follows it."""

import csv
import math
from dataclasses import dataclass

import optuna
import pytest
from sweep_runs import artifact, folder, in_order, params_lines, rows, set_params, the_sweep

from cifar_pipeline.stages.train import train
from helpers.workspace import Workspace

BY_LOSS = ("-m", "optimizer.lr=0.001,0.03,1", "monitor=val/loss", "mode=min", "evaluation=best", "metrics=f1_macro")
LONG = ("trainer.max_epochs=4", "trainer=default", "trainer.batch_size=32")
SEARCH = (
    "-m", "sweep=search", "sampler=random", "hydra.sweeper.n_trials=5", "trainer.max_epochs=2", "monitor=val/loss",
    "mode=min", "pruner=median", "hydra.sweeper.pruner.n_startup_trials=1",
)  # fmt: skip


@dataclass(frozen=True)
class Swept:
    workspace: Workspace
    output: str

    def values(self, metric: str) -> list[list[float]]:
        """Return the metric of each epoch of each trial, from the trials' files."""
        values = []
        for number in range(len(in_order(self.workspace, the_sweep(self.workspace)))):
            text = self.workspace.read(f"{folder(self.output)}/{number}/reports/history.csv")
            values.append([float(row[metric]) for row in csv.DictReader(text.splitlines())])
        return values


def scenario_by_loss(workspace: Workspace) -> Swept:
    return Swept(workspace, workspace.train(*BY_LOSS, *LONG))


@pytest.mark.long
def test_trials_are_ranked_by_the_lowest_loss_of_their_best_epoch(outcome):
    swept = outcome(scenario_by_loss)
    workspace, sweep = swept.workspace, the_sweep(swept.workspace)
    losses, accuracies = swept.values("val/loss"), swept.values("val/accuracy")
    best = [min(range(4), key=epochs.__getitem__) for epochs in losses]
    assert any(epoch < 3 for epoch in best)  # otherwise the last weights would have the same values
    table = rows(workspace, sweep)
    for row, epoch, loss, accuracy in zip(table, best, losses, accuracies, strict=True):
        assert (float(row["val/loss"]), float(row["val/accuracy"])) == (loss[epoch], accuracy[epoch])
    order = sorted(range(3), key=lambda number: min(losses[number]))
    heading = "validation loss of the best weights"
    assert heading in " ".join(swept.output.split()) and heading in artifact(workspace, sweep, "compare.html").decode()
    markdown = artifact(workspace, sweep, "comparison.md").decode().splitlines()
    assert markdown[0].endswith(f"on digits: {heading}")
    assert [line.split("|")[2].strip(" *") for line in markdown[4:] if line.startswith("|")] == [
        ("0.001", "0.03", "1")[number] for number in order
    ]
    assert markdown[4].split("|")[3].strip(" *") == f"{min(map(min, losses)):.4f}"
    keys = ("monitor", "mode", "evaluation.checkpoint")
    assert [sweep.data.tags[key] for key in keys] == ["val/loss", "min", "best"]
    # The same later, whatever params.yaml says then.
    table = swept.output[swept.output.index("rank ") : swept.output.index("To run ")]
    assert table in workspace.run("python", "src/report.py", "sweep")


def scenario_best_in_the_pipeline(workspace: Workspace) -> tuple[Swept, str]:
    swept = scenario_by_loss(workspace)
    set_params(workspace, params_lines(swept.output))
    return swept, workspace.train()


@pytest.mark.long
def test_the_best_trial_is_reused_with_its_monitor(outcome):
    swept, output = outcome(scenario_best_in_the_pipeline)
    assert "its weights are reused" in output
    recipe = swept.workspace.json("models/metadata.json")["recipe"]
    assert (recipe["monitor"], recipe["mode"]) == ("val/loss", "min")


def scenario_search(workspace: Workspace) -> Swept:
    return Swept(workspace, workspace.train(*SEARCH))


def test_a_search_minimizes_where_smaller_values_are_better(outcome):
    swept = outcome(scenario_search)
    sweep = the_sweep(swept.workspace)
    url = f"sqlite:///{swept.workspace.root / 'optuna.db'}"
    study = optuna.load_study(study_name=sweep.data.tags["study"], storage=url)
    table = rows(swept.workspace, sweep)
    losses = [float(row["val/loss"]) for row in table if row["status"] == "FINISHED"]
    assert study.best_value == min(losses) < max(losses)
    # Poor trials were stopped, which does not fail the search.
    states = {"COMPLETE": "FINISHED", "PRUNED": "PRUNED"}
    assert [states[trial.state.name] for trial in study.trials] == [row["status"] for row in table]
    stopped = [row["reason"] for row in table if row["status"] == "PRUNED"]
    assert stopped and all(reason.startswith("Pruned after epoch 1 of 2 with validation loss") for reason in stopped)
    assert sweep.info.status == "FINISHED" and len(table) == 5


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (("monitor=val/loss,val/accuracy",), ("several values of monitor", "start a sweep for each")),
        (("mode=min,max", "seed=1,2"), ("several values of mode",)),
        (("evaluation=last,best",), ("several values of evaluation",)),
        (("evaluation.checkpoint=last,best",), ("several values of evaluation.checkpoint",)),
    ],
)
def test_what_would_rank_trials_inconsistently_is_refused(project, arguments, fragments):
    project.start(train, "-m", *arguments).assert_refused(*fragments)
    assert not (project.folder / "multirun").exists() or not any((project.folder / "multirun").rglob("*.log"))


@pytest.mark.long
def test_no_trial_is_compared_by_a_validation_split_that_does_not_exist(outcome):
    workspace, refused, output = outcome(scenario_without_validation)
    assert "no validation split to compare the trials by val/accuracy" in refused
    assert "training loss of the last weights" in " ".join(output.split())
    losses = [float(row["train/loss"]) for row in rows(workspace, the_sweep(workspace))]
    assert len(losses) == 2 and not any(map(math.isnan, losses))


def scenario_without_validation(workspace: Workspace) -> tuple[Workspace, str, str]:
    workspace.run("python", "src/preprocess.py", "data.val_fraction=0")
    sweep = ("-m", "optimizer=sgd,adam", "data.val_fraction=0", "trainer.max_epochs=1")
    refused = workspace.train(*sweep, code=1)
    by_loss = workspace.train(*sweep, "monitor=train/loss", "mode=min")
    workspace.mlflow.delete_run(min(workspace.runs(), key=lambda run: run.info.start_time).info.run_id)
    return workspace, refused, by_loss
