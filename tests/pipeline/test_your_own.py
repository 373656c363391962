"""Carry out the examples of docs/extending.md exactly as they are printed there."""

import re

import pytest

from helpers.workspace import ROOT, Workspace

# "In `path`: ..." in a paragraph that ends with a colon, and the block of code after it.
FILE = re.compile(
    r"(?:[Ii]n|such as)\s+`((?:conf|src/project)/[\w/]+\.\w+)`(?:[^\n]|\n(?!\n))*:\n\n```\w+\n(.*?)```", re.DOTALL
)


def examples() -> dict[str, str]:
    """Return the content of each file on the page, by its path."""
    return dict(FILE.findall((ROOT / "docs" / "extending.md").read_text()))


OPTIONS = ["model=linear", "optimizer=sign_sgd", "loss=poly", "data=stripes"]


@pytest.fixture
def extended(copy: Workspace) -> Workspace:
    """A copy of the project with the files of all examples."""
    files = examples()
    assert sorted(files) == [
        "conf/data/source/stripes.yaml",
        "conf/data/stripes.yaml",
        "conf/launcher/night.yaml",
        "conf/loss/poly.yaml",
        "conf/model/linear.yaml",
        "conf/optimizer/adagrad.yaml",
        "conf/optimizer/sign_sgd.yaml",
        "src/project/data/stripes.py",
        "src/project/losses/poly.py",
        "src/project/models/linear.py",
        "src/project/optimizers.py",
    ]
    for path, content in files.items():
        copy.write(path, content)
    return copy


def test_a_custom_network_optimizer_loss_and_data_set_train(extended: Workspace) -> None:
    for stage in ("download", "preprocess", "train"):
        extended.run("python", f"src/{stage}.py", *OPTIONS)
    run = extended.runs()[-1]
    assert (run.info.run_name, run.info.status) == ("sign_sgd-poly-0", "FINISHED")
    assert run.data.tags["dataset"] == "stripes"
    assert run.data.params["model._target_"] == "project.models.linear.Linear"
    assert run.data.params["optimizer._target_"] == "project.optimizers.SignSGD"
    assert run.data.params["loss._target_"] == "project.losses.poly.PolyLoss"
    assert extended.json("models/metadata.json")["classes"] == ["vertical", "horizontal"]
    launcher = extended.run("python", "src/train.py", "launcher=night", "--cfg", "hydra", "--package", "hydra.launcher")
    assert "SlurmLauncher" in launcher and "partition: night" in launcher


def test_an_optimizer_of_torch_needs_only_its_file(extended: Workspace) -> None:
    extended.train("optimizer=adagrad", "experiment=debug")
    run = extended.runs()[-1]
    assert (run.info.status, run.data.params["optimizer._target_"]) == ("FINISHED", "torch.optim.Adagrad")


@pytest.mark.long
def test_custom_options_are_a_dvc_experiment_like_any_other(extended: Workspace) -> None:
    extended.commit()
    output = extended.dvc("exp", "run", "--name", "custom", *(word for option in OPTIONS for word in ("-S", option)))
    assert "Test accuracy: " in output and "on stripes" in output
    metrics = extended.json("reports/metrics.json")
    assert metrics["parameters"] == 2 * 3 * 32 * 32 + 2
    assert list(metrics["per_class"]) == ["vertical", "horizontal"]
    run = extended.runs()[-1]
    assert (run.info.run_name, run.info.status) == ("sign_sgd-poly-0", "FINISHED")
    assert (run.data.tags["dvc.experiment"], run.data.tags["git.dirty"]) == ("custom", "false")
    assert run.data.metrics["test/accuracy"] == metrics["test"]["accuracy"]
