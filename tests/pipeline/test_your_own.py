"""The recipes for something of one's own, done exactly as they stand in docs/extending.md."""

import re

import pytest

from helpers.workspace import ROOT, Workspace

FILE = re.compile(r"(?:[Ii]n|such as|as in)\s+`([\w./]+)`:\s+```\w+\n(.*?)```", re.DOTALL)


def recipes() -> dict[str, str]:
    """Each file that the page shows, by its path."""
    section = (ROOT / "docs" / "extending.md").read_text()
    found = {}
    for match in FILE.finditer(section):
        path, content = match.groups()
        found[path] = re.sub(r"^  ", "", content, flags=re.M).rstrip() + "\n"
    return found


CHOICES = ["model=linear", "optimizer=adagrad", "loss=hinge", "data=stripes"]


@pytest.fixture
def ours(copy: Workspace) -> Workspace:
    """A copy with the recipes' files."""
    files = recipes()
    assert sorted(files) == [
        "conf/data/source/stripes.yaml",
        "conf/data/stripes.yaml",
        "conf/launcher/night.yaml",
        "conf/loss/hinge.yaml",
        "conf/model/linear.yaml",
        "conf/optimizer/adagrad.yaml",
        "src/project/data/stripes.py",
        "src/project/linear.py",
    ]
    for path, content in files.items():
        (copy.root / path).write_text(content)
    return copy


def test_the_recipes_for_ones_own_network_optimizer_loss_and_data_train(ours: Workspace) -> None:
    for stage in ("download", "preprocess", "train"):
        ours.run("python", f"src/{stage}.py", *CHOICES)
    run = ours.runs()[-1]
    assert (run.info.run_name, run.info.status) == ("adagrad-hinge-0", "FINISHED")
    assert run.data.tags["dataset"] == "stripes"
    assert run.data.params["optimizer._target_"] == "torch.optim.Adagrad"
    facts = ours.json("models/metadata.json")
    assert facts["classes"] == ["upright", "lying"]
    launcher = ours.run("python", "src/train.py", "launcher=night", "--cfg", "hydra", "--package", "hydra.launcher")
    assert "SlurmLauncher" in launcher and "partition: night" in launcher


@pytest.mark.long
def test_ones_own_choices_are_an_experiment_of_dvc_like_any_other(ours: Workspace) -> None:
    ours.commit()
    said = ours.dvc("exp", "run", "--name", "ours", *(word for choice in CHOICES for word in ("-S", choice)))
    assert "Test accuracy: " in said and "on stripes" in said
    metrics = ours.json("reports/metrics.json")
    assert metrics["parameters"] == 2 * 3 * 32 * 32 + 2
    assert list(metrics["per_class"]) == ["upright", "lying"]
    run = ours.runs()[-1]
    assert (run.info.run_name, run.info.status) == ("adagrad-hinge-0", "FINISHED")
    assert (run.data.tags["dvc.experiment"], run.data.tags["git.dirty"]) == ("ours", "false")
    assert run.data.metrics["test/accuracy"] == metrics["test"]["accuracy"]
