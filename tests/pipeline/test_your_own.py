"""Carry out the examples of docs/extending.md exactly as they are printed there."""

import re

import pytest
import yaml

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
        "src/project/optimizers/sign_sgd.py",
    ]
    for path, content in files.items():
        (copy.root / path).parent.mkdir(exist_ok=True)
        copy.write(path, content)
    return copy


def test_a_custom_network_optimizer_loss_and_data_set_train(extended: Workspace) -> None:
    for stage in ("download", "preprocess", "train"):
        extended.run("python", f"src/{stage}.py", *OPTIONS)
    run = extended.runs()[-1]
    assert (run.info.run_name, run.info.status) == ("sign_sgd-poly-0", "FINISHED")
    assert run.data.tags["dataset"] == "stripes"
    assert run.data.params["model._target_"] == "project.models.linear.Linear"
    assert run.data.params["optimizer._target_"] == "project.optimizers.sign_sgd.SignSGD"
    assert run.data.params["loss._target_"] == "project.losses.poly.PolyLoss"
    assert extended.json("models/metadata.json")["classes"] == ["vertical", "horizontal"]
    launcher = extended.run("python", "src/train.py", "launcher=night", "--cfg", "hydra", "--package", "hydra.launcher")
    assert "SlurmLauncher" in launcher and "partition: night" in launcher


@pytest.mark.long
def test_an_optimizer_of_torch_needs_only_its_file(extended: Workspace) -> None:
    extended.train("optimizer=adagrad", "experiment=debug")
    run = extended.runs()[-1]
    assert (run.info.status, run.data.params["optimizer._target_"]) == ("FINISHED", "torch.optim.Adagrad")


@pytest.mark.long
def test_a_new_group_is_entered_in_the_defaults_only(extended: Workspace) -> None:
    (extended.root / "conf" / "regularization").mkdir()
    for option, value in {"weak": 0.1, "strong": 0.5}.items():
        extended.write(f"conf/regularization/{option}.yaml", f"# Dropout of {value}.\ndropout: {value}\n")
    extended.edit("conf/config.yaml", "  - model: lenet\n", "  - model: lenet\n  - regularization: weak\n")
    extended.edit("conf/model/linear.yaml", "dropout: 0.1", "dropout: ${regularization.dropout}")
    extended.edit("params.yaml", "model: null", "model: linear\nregularization: strong")
    extended.edit("params.yaml", "experiment: tutorial", "experiment: debug")
    extended.run("python", "src/configure.py")
    composed = yaml.safe_load(extended.read("composed.yaml"))
    assert composed["train"]["regularization"] == {"dropout": 0.5}
    assert [stage for stage in composed if "regularization" in composed[stage]] == ["train"]

    extended.train()
    extended.train("regularization=weak")
    strong, weak = extended.runs()[-2:]
    assert [run.data.params["model.dropout"] for run in (strong, weak)] == ["0.5", "0.1"]
    assert [run.data.params["regularization.dropout"] for run in (strong, weak)] == ["0.5", "0.1"]
    assert strong.data.tags["fingerprint"] != weak.data.tags["fingerprint"]
    assert extended.json("models/metadata.json")["choices"]["regularization"] == "weak"

    refused = extended.train("regularization=stong", code=2)
    assert "conf/regularization/ has no file of this name; did you mean `strong`?" in refused
    extended.run("python", "src/build_docs.py")
    assert "## regularization" in extended.read("docs/configuration.md")
    assert "dropout" in extended.json("schema/regularization.json")["properties"]


@pytest.mark.long
def test_custom_options_are_a_dvc_experiment_like_any_other(extended: Workspace) -> None:
    extended.commit()
    output = extended.dvc("exp", "run", "--name", "custom", *(word for option in OPTIONS for word in ("-S", option)))
    assert "Test accuracy: " in output and "on stripes" in output
    assert extended.json("models/metadata.json")["parameters"] == 2 * 3 * 32 * 32 + 2
    assert extended.classes() == ["vertical", "horizontal"]
    run = extended.runs()[-1]
    assert (run.info.run_name, run.info.status) == ("sign_sgd-poly-0", "FINISHED")
    assert (run.data.tags["dvc.experiment"], run.data.tags["git.dirty"]) == ("custom", "false")
    assert run.data.metrics["test/accuracy"] == extended.json("reports/metrics.json")["test"]["accuracy"]
