"""A sweep over folds or seeds has a row for each choice, and says which rows differ beyond chance."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from mlflow.entities import Run
from sweep_runs import (
    FOLDS,
    add_images,
    artifact,
    in_order,
    params_lines,
    rows,
    scenario_folds,
    set_params,
    sweeps,
    the_sweep,
    trained,
)

from cifar_pipeline.reporting.significance import compare_with_best, paired_t_test
from cifar_pipeline.stages.train import train
from cifar_pipeline.sweeps.summary import _data_columns, load_comparison
from cifar_pipeline.tracking.sweeps import TrialRecord
from helpers.config_project import Project
from helpers.workspace import Workspace


def accuracies(runs: list[Run], optimizer: str) -> list[float]:
    return [run.data.metrics["val/accuracy"] for run in runs if f"-{optimizer}-" in run.info.run_name]


def images(run: Run) -> dict[str, int]:
    (entry,) = run.inputs.dataset_inputs
    return dict(json.loads(entry.dataset.profile)["images"])


def test_folds_are_one_row_an_optimizer_and_the_mean_decides(outcome):
    swept = outcome(scenario_folds)
    parent = the_sweep(swept.workspace)
    runs = in_order(swept.workspace, parent)
    means = {optimizer: float(np.mean(accuracies(runs, optimizer))) for optimizer in ("sgd", "adam")}
    best, other = sorted(means, key=lambda optimizer: -means[optimizer])
    lines = artifact(swept.workspace, parent, "comparison.md").decode().splitlines()
    assert lines[0].endswith(
        "on digits: validation accuracy of the last weights, mean ± standard deviation over 3 folds"
    )
    assert [line.split("|")[2].strip(" *") for line in lines[4:6]] == [best, other]
    for line, optimizer in zip(lines[4:6], (best, other), strict=True):
        values = 100 * np.array(accuracies(runs, optimizer))
        assert line.split("|")[3].strip(" *") == f"{values.mean():.2f} ± {values.std(ddof=1):.2f} % (3)"
    assert "over 3 folds" in " ".join(swept.output.split())


def test_the_p_value_is_that_of_the_runs_with_the_overlap_of_their_training_images(outcome):
    swept = outcome(scenario_folds)
    parent = the_sweep(swept.workspace)
    runs = in_order(swept.workspace, parent)
    sizes = [images(run) for run in runs]
    overlap = float(np.mean([size["val"] / size["train"] for size in sizes]))
    assert overlap == pytest.approx(1 / 2, abs=0.01)
    one, other = (np.array([accuracies(runs, optimizer)]) for optimizer in ("sgd", "adam"))
    expected = paired_t_test(one, other, overlap)[0]
    found = [float(row["p"]) for row in rows(swept.workspace, parent) if row["p"]]
    assert found == pytest.approx([expected] * 3)


def test_the_level_is_of_the_comparison_and_not_of_the_trainings(outcome):
    swept = outcome(scenario_folds)
    assert not trained(swept.stricter) and len(sweeps(swept.workspace)) == 1
    assert "; level 0.05)" in swept.output
    assert "; level 0.0001)" in swept.stricter and "; level 0.0001)" in swept.shown


def test_the_printed_choices_have_no_fold(outcome):
    swept = outcome(scenario_folds)
    runs = in_order(swept.workspace, the_sweep(swept.workspace))
    best = max(("sgd", "adam"), key=lambda optimizer: np.mean(accuracies(runs, optimizer)))
    sentence = (
        f"To run optimizer={best} in the pipeline, on its own split (without data.fold), and evaluate it on the test "
        "split:"
    )
    assert sentence in swept.output and sentence in swept.shown
    lines = params_lines(swept.output)
    assert lines["optimizer"] == best and "data" not in lines["overrides"] and "max_epochs: 2" in lines["overrides"]
    page = artifact(swept.workspace, the_sweep(swept.workspace), "compare.html").decode()
    assert "This trains it on the pipeline&#39;s own split (without data.fold)" in page.replace("'", "&#39;")


def scenario_in_the_pipeline(workspace: Workspace) -> tuple[Workspace, str]:
    lines = params_lines(workspace.train(*FOLDS))
    set_params(workspace, lines)
    return workspace, workspace.train()


@pytest.mark.long
def test_the_best_choice_over_folds_is_trained_on_the_split_of_the_pipeline(outcome):
    workspace, output = outcome(scenario_in_the_pipeline)
    assert "epoch 2/2" in output
    trained_hash = workspace.json("models/metadata.json")["dataset"]["hash"]
    assert trained_hash == workspace.json("data/processed/dataset.json")["hash"]


def scenario_other_images(workspace: Workspace) -> tuple[Workspace, dict[str, Run], dict[str, str]]:
    """Sweeps over what changes the validation images, over their size alone, and over sources."""
    add_images(workspace, 30)
    commands = {
        "fraction": ("data.val_fraction=0.1,0.2",),
        "size": ("data=image_folder", "data.size=16,32", "seed=0,1"),
        "source": ("data=digits,image_folder",),
        "single": ("optimizer=sgd,adam",),
    }
    parents: dict[str, Run] = {}
    outputs = {}
    for name, command in commands.items():
        known = {run.info.run_id for run in parents.values()}
        outputs[name] = workspace.train("-m", *command, "trainer.max_epochs=1")
        (parents[name],) = [run for run in sweeps(workspace) if run.info.run_id not in known]
    return workspace, parents, outputs


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "difference", "sentence"),
    [
        ("fraction", "other images: cannot say", "The validation images are not the same in all rows"),
        ("source", "other data: not comparable", "The trials are on different data (digits, image_folder)"),
        ("single", "one run each: cannot say", "One run each: cannot say whether a difference is more than chance."),
    ],
)
def test_rows_on_other_images_or_of_one_run_are_not_tested(outcome, name, difference, sentence):
    workspace, parents, outputs = outcome(scenario_other_images)
    assert sorted({row["difference"] for row in rows(workspace, parents[name])}) == ["best", difference]
    for text in (outputs[name], artifact(workspace, parents[name], "comparison.md").decode()):
        assert sentence in text
    assert sentence in artifact(workspace, parents[name], "compare.html").decode()


@pytest.mark.long
def test_the_same_images_in_another_size_are_paired(outcome):
    workspace, parents, _ = outcome(scenario_other_images)
    table = rows(workspace, parents["size"])
    assert len({row["images"] for row in table}) == 1 and len({row["data.size"] for row in table}) == 2
    assert not {"other images: cannot say", "other data: not comparable"} & {row["difference"] for row in table}


@pytest.mark.long
def test_a_pruned_trial_is_neither_ranked_nor_failed(outcome, inside):
    workspace, parents, _ = outcome(scenario_other_images)
    inside(workspace)
    parent = parents["single"].info.run_id
    pruned = in_order(workspace, parents["single"])[0].info.run_id
    workspace.mlflow.set_tag(
        pruned, "pruned", "Pruned after epoch 1 of 9 with validation accuracy 31.00 % (MedianPruner)."
    )
    workspace.mlflow.set_terminated(pruned, "KILLED")
    comparison = load_comparison(parent)
    assert list(comparison.trials["status"]) == ["PRUNED", "FINISHED"]
    assert [group.members[0]["status"] for group in comparison.groups] == ["FINISHED", "PRUNED"]
    assert [difference.text for difference in compare_with_best(comparison)] == ["best", ""]
    shown = workspace.run("python", "src/report.py", "sweep", parent)
    assert "pruned, reused: after epoch 1" in " ".join(shown.split()) and "was killed" not in shown


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (("comparison.significance_level=5", "seed=0,1"), ("comparison.significance_level=5", "above 0 and below 1")),
        (("comparison.significance_level=0.1,0.2",), ("several values of comparison.significance_level",)),
    ],
)
def test_a_level_that_is_none_is_refused_before_any_trial(never_swept, inside, arguments, fragments):
    inside(never_swept)
    Project(never_swept.root).start(train, "-m", *arguments).assert_refused(*fragments)
    assert never_swept.runs() == []


@pytest.mark.parametrize("profile", [None, '{"features_shape": [90, 8, 8, 3]}'])
def test_a_data_set_that_another_tool_recorded_has_an_unknown_number_of_images(profile):
    entry = SimpleNamespace(name="digits", digest="abc", profile=profile)
    inputs = SimpleNamespace(dataset_inputs=[SimpleNamespace(dataset=entry)])
    run = SimpleNamespace(inputs=inputs, data=SimpleNamespace(params={"data.fold": "0"}))
    (row,) = _data_columns([TrialRecord(0, (), run, reused=False)])
    assert (row["dataset"], row["images"]) == ("digits", "abc")
    assert math.isnan(row["train_images"]) and math.isnan(row["val_images"])
