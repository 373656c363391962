"""Other choices around the same base: an edited file, `dvc exp run`, a sweep; one MLflow database has them all."""

import json

import pytest
from workspace import Command, Workspace, stages_that

ONE_EPOCH = "++overrides.trainer.max_epochs=1"


def experiment_names(workspace: Workspace) -> set[str]:
    revisions = json.loads(workspace.dvc("exp", "show", "--json"))
    return {experiment["name"] for revision in revisions for experiment in revision["experiments"] or []}


@pytest.fixture(scope="module")
def changed(clone, tmp_path_factory) -> dict[str, tuple[Workspace, Command]]:
    """Three ways to change something, started at once, each in a copy of its own."""
    folder = tmp_path_factory.mktemp("changed")
    commands = {
        "file": ["dvc", "repro"],
        "experiment": [
            "dvc",
            "exp",
            "run",
            "--name",
            "votes",
            "-S",
            "optimizer=adam",
            "-S",
            "loss=mse",
            "-S",
            ONE_EPOCH,
        ],
        "sweep": [
            "python",
            "src/train.py",
            "-m",
            "optimizer=sgd,adam",
            "loss=cross_entropy,mse",
            "trainer.max_epochs=1",
        ],
    }
    copies = {name: clone.copy(folder / name) for name in commands}
    copies["file"].edit("conf/optimizer/sgd.yaml", "lr: 0.001", "lr: 0.002")
    return {name: (copies[name], copies[name].start(*words)) for name, words in commands.items()}


def test_the_file_of_the_chosen_option_reruns_training_and_evaluation(changed):
    copy, command = changed["file"]
    said = command.end()
    assert stages_that(said, "ran") == ["configure", "train", "evaluate"]
    assert stages_that(said, "skipped") == ["download", "preprocess"]

    changes = json.loads(copy.dvc("params", "diff", "--json"))
    assert changes.keys() == {"composed.yaml"} and changes["composed.yaml"].keys() == {"optimizer.lr"}
    assert changes["composed.yaml"]["optimizer.lr"].items() >= {"old": 0.001, "new": 0.002}.items()
    first, second = copy.runs()
    assert [run.data.params["optimizer.lr"] for run in (first, second)] == ["0.001", "0.002"]
    # The edited value stands in no commit, so the run itself keeps it.
    assert second.data.tags["git.dirty"] == "true"
    assert "code.diff" in [artifact.path for artifact in copy.mlflow.list_artifacts(second.info.run_id)]


def test_an_experiment_of_dvc_is_one_more_run(changed):
    copy, command = changed["experiment"]
    assert stages_that(command.end(), "ran") == ["configure", "train", "evaluate"]
    _, run = copy.runs()
    assert (run.info.run_name, run.info.status) == ("adam-mse-0", "FINISHED")
    assert (run.data.tags["dvc.experiment"], run.data.tags["git.dirty"]) == ("votes", "false")
    assert run.data.params["trainer.max_epochs"] == "1"
    assert run.data.params["optimizer._target_"] == "torch.optim.Adam"
    assert run.data.metrics["test/accuracy"] == copy.json("reports/metrics.json")["test"]["accuracy"]
    assert experiment_names(copy) == {"votes"}


def test_a_sweep_leaves_the_models_alone_and_gives_each_job_its_own(changed, clone):
    copy, command = changed["sweep"]
    command.end()
    jobs = [run for run in copy.runs()[1:] if "identity" in run.data.tags]
    names = [f"{optimizer}-{loss}-0" for optimizer in ("sgd", "adam") for loss in ("cross_entropy", "mse")]
    assert [(job.info.run_name, job.info.status) for job in jobs] == [(name, "FINISHED") for name in names]
    assert len({job.data.tags["identity"] for job in jobs}) == 4
    assert copy.model() == clone.model()
    folders = sorted(path.parent for path in copy.root.glob("multirun/**/models"))
    for folder, job in zip(folders, jobs, strict=True):
        assert copy.json(f"{folder}/models/run.json") == {"id": job.info.run_id, "name": job.info.run_name}
        assert len(copy.read(f"{folder}/reports/history.csv").splitlines()) == 2
    assert len({copy.model(f"{folder}/models") for folder in folders}) == 4


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
