"""Edited options and `dvc exp run` give one run each in the same MLflow database."""

import json

import pytest

from helpers.workspace import Workspace, stages_that

ONE_EPOCH = "++overrides.trainer.max_epochs=1"


def experiment_names(workspace: Workspace) -> set[str]:
    revisions = json.loads(workspace.dvc("exp", "show", "--json"))
    return {experiment["name"] for revision in revisions for experiment in revision["experiments"] or []}


@pytest.mark.long
def test_an_edited_file_of_the_chosen_option_reruns_the_training(copy):
    copy.edit("conf/optimizer/sgd.yaml", "lr: 0.001", "lr: 0.002")
    copy.dvc("repro", "configure")
    said = copy.dvc("repro", "--dry", "train")
    assert stages_that(said, "ran") == ["train"]
    assert stages_that(said, "skipped") == ["configure", "download", "preprocess"]

    changes = json.loads(copy.dvc("params", "diff", "--json"))
    assert changes.keys() == {"composed.yaml"} and changes["composed.yaml"].keys() == {"train.optimizer.lr"}
    assert changes["composed.yaml"]["train.optimizer.lr"].items() >= {"old": 0.001, "new": 0.002}.items()


@pytest.mark.long
def test_a_training_with_an_edited_file_is_another_run_that_keeps_the_edit(copy):
    copy.edit("conf/optimizer/sgd.yaml", "lr: 0.001", "lr: 0.002")
    assert stages_that(copy.dvc("repro"), "ran") == ["configure", "train", "evaluate"]
    first, second = copy.runs()
    assert [run.data.params["optimizer.lr"] for run in (first, second)] == ["0.001", "0.002"]
    # The edited value stands in no commit, so the run itself keeps it.
    assert second.data.tags["git.dirty"] == "true"
    assert "code.diff" in [artifact.path for artifact in copy.mlflow.list_artifacts(second.info.run_id)]


@pytest.mark.long
def test_an_experiment_of_dvc_is_one_more_run(copy):
    said = copy.dvc("exp", "run", "--name", "votes", "-S", "optimizer=adam", "-S", "loss=mse", "-S", ONE_EPOCH)
    assert stages_that(said, "ran") == ["configure", "train", "evaluate"]
    _, run = copy.runs()
    assert (run.info.run_name, run.info.status) == ("adam-mse-0", "FINISHED")
    assert (run.data.tags["dvc.experiment"], run.data.tags["git.dirty"]) == ("votes", "false")
    assert run.data.params["trainer.max_epochs"] == "1"
    assert run.data.params["optimizer._target_"] == "torch.optim.Adam"
    assert run.data.metrics["test/accuracy"] == copy.json("reports/metrics.json")["test"]["accuracy"]
    assert experiment_names(copy) == {"votes"}


@pytest.mark.long
def test_an_experiment_may_set_a_value_of_a_file_in_conf(copy):
    said = copy.dvc("exp", "run", "-S", "conf/optimizer/sgd.yaml:lr=0.002")
    assert stages_that(said, "ran") == ["configure", "train", "evaluate"]
    assert [run.data.params["optimizer.lr"] for run in copy.runs()] == ["0.001", "0.002"]


@pytest.mark.long
def test_a_temporary_workspace_runs_its_own_code_and_logs_to_the_main_database(copy):
    copy.edit("src/train.py", "    check_targets(config)\n", '    say("its own code")\n    check_targets(config)\n')
    said = copy.dvc("exp", "run", "--temp", "--name", "apart", "-S", ONE_EPOCH)
    assert "its own code" in said
    first, second = copy.runs()
    assert (second.data.tags["dvc.experiment"], second.data.tags["git.dirty"]) == ("apart", "true")
    assert second.info.artifact_uri.startswith((copy.root / "mlruns").as_uri())
    assert experiment_names(copy) == {"apart"}
    assert copy.json("models/run.json")["id"] == first.info.run_id
