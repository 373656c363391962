"""`make update`: a newer library is merged into an adopted project, and nothing that was taken away comes back."""

from dataclasses import replace
from pathlib import Path

import pytest
from clones import NAME, Repository, assert_checks_pass

from cifar_pipeline.adoption import update as updating
from cifar_pipeline.adoption.plan import RECORD, read_record
from helpers.config_project import Ended, run
from update import update

NETWORK = '''"""A linear classifier."""

import torch
from torch import nn


class Linear(nn.Module):
    """Compute logits as linear functions of the pixels."""

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(images)
        return logits
'''
OPTION = "# A linear classifier.\n# Pick it: as a baseline.\n_target_: project.models.linear.Linear\n"
LIBRARY = "src/cifar_pipeline/utils/text.py"
ADDED = '\n\ndef shout(text: str) -> str:\n    """Return the text in capitals."""\n    return text.upper()\n'
OWN_README, OWN_METRICS = "# flowers\n\nOurs.\n", '{"test": {"accuracy": 0.9}}\n'


@pytest.fixture
def newer(upstream: Repository, tmp_path: Path) -> Repository:
    """A newer upstream: library, README, results, benchmarks, a removed recipe, an option, versions."""
    newer = upstream.clone(tmp_path / "newer")
    newer.write(LIBRARY, newer.read(LIBRARY) + ADDED)
    pages = ("README.md", "README.zh-CN.md", "CHANGELOG.md", "docs/leaderboard.md", "docs/configuration.md")
    for page in (*pages, "dvc.lock", "reports/bench.md", "composed.yaml"):
        newer.write(page, newer.read(page).replace("\n", "\nNewer.\n", 1))
    newer.write("reports/metrics.json", '{"test": {"accuracy": 0.7}}\n')
    newer.write("benchmarks/newer.py", "")
    newer.write("conf/experiment/quick.yaml", newer.read("conf/experiment/quick.yaml") + "seed: 7\n")
    newer.write(
        "conf/loss/hinge.yaml",
        "# The loss of another margin, here the mean squared error.\n# Pick it: never.\ndefaults:\n  - mse\n",
    )
    newer.edit("conf/mlflow/default.yaml", "# Tags of each training's run", "# The tags of each training's run")
    newer.edit("pyproject.toml", 'version = "0.1.0"', 'version = "0.2.0"')
    newer.edit("pyproject.toml", '    "captum>=0.8",\n', '    "captum>=0.8.1",\n')
    newer.commit_all("Improve everything")
    return newer


@pytest.fixture
def grown(project: Repository) -> Repository:
    """The adopted project with a network, an option, a README and results of its own."""
    project.write("src/project/models/linear.py", NETWORK)
    project.write("conf/model/linear.yaml", OPTION)
    project.write("README.md", OWN_README)
    (project.root / "reports").mkdir()
    project.write("reports/metrics.json", OWN_METRICS)
    project.write("dvc.lock", "schema: '2.0'\nstages: {}\n")
    project.edit("params.yaml", "model: null", "model: linear")
    project.edit("pyproject.toml", 'version = "0.1.0"', 'version = "0.3.0"')
    project.commit_all("Add a network of our own")
    return project


def updated(newer: Repository, *arguments: str) -> Ended:
    return run(update, str(newer.root), *arguments)


@pytest.fixture
def without_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the generated files as they are, because the scripts that make them take seconds."""
    monkeypatch.setattr(updating, "generate", lambda changes, folder: None)


def test_the_library_arrives_and_nothing_else_comes_back(
    grown: Repository, newer: Repository, request: pytest.FixtureRequest
) -> None:
    before = grown.files()
    ended = updated(newer)
    assert not ended.code, ended.err
    commit = newer.git("rev-parse", "HEAD")
    assert f"Merged upstream's {commit[:10]}, 1 commit newer: " in ended.out
    assert grown.git("rev-parse", "HEAD^2") == commit and grown.state()[1] == ""
    assert grown.files() - before == {"conf/loss/hinge.yaml"} and before <= grown.files()
    assert grown.read(LIBRARY).endswith(ADDED)
    assert (grown.read("README.md"), grown.read("reports/metrics.json")) == (OWN_README, OWN_METRICS)
    assert "Newer." not in grown.read("dvc.lock")
    pyproject = grown.read("pyproject.toml")
    assert f'name = "{NAME}"\nversion = "0.3.0"' in pyproject and "captum>=0.8.1" in pyproject
    mlflow = grown.read("conf/mlflow/default.yaml")
    assert f"MLFLOW_EXPERIMENT_NAME,{NAME}}}" in mlflow and "# The tags of each" in mlflow
    page = grown.read("docs/configuration.md")
    assert "Newer." not in page + grown.read("composed.yaml")
    assert "conf/model/linear.yaml" in page and "conf/loss/hinge.yaml" in page and "quick" not in page
    assert "project.models.linear.Linear" in grown.read("composed.yaml")
    record = read_record()
    assert record is not None and (record.name, record.commit) == (NAME, commit)
    assert "there is nothing to merge" in run(update).out
    # A second, later commit arrives over the remote that the first update has added.
    request.getfixturevalue("without_scripts")
    newer.edit(LIBRARY, "text.upper()", "text.upper() + '!'")
    newer.commit_all("Shout louder")
    assert not run(update).code
    assert "text.upper() + '!'" in grown.read(LIBRARY) and grown.files() - before == {"conf/loss/hinge.yaml"}


@pytest.mark.usefixtures("without_scripts")
def test_lines_that_both_changed_are_left_for_the_user(grown: Repository, newer: Repository) -> None:
    newer.edit("conf/optimizer/adam.yaml", "lr: ", "lr: 1")
    newer.commit_all("Another value")
    grown.edit("conf/optimizer/adam.yaml", "lr: ", "lr: 2")
    before = grown.commit_all("Our value"), ""
    ended = updated(newer)
    assert ended.code == 2 and ended.err.count("\n") == 1, ended.err
    assert "changed the same lines of conf/optimizer/adam.yaml:" in ended.err and "`git merge --abort`" in ended.err
    assert "<<<<<<< HEAD" in grown.read("conf/optimizer/adam.yaml")
    run(update).assert_refused("A merge is unfinished")
    grown.git("merge", "--abort")
    assert grown.state() == before
    assert updated(newer).code == 2
    grown.git("checkout", "--ours", "conf/optimizer/adam.yaml")
    grown.commit_all("Merge")
    assert grown.read(LIBRARY).endswith(ADDED) and not (grown.root / "benchmarks").exists()
    assert "there is nothing to merge" in run(update).out


@pytest.mark.long
@pytest.mark.usefixtures("without_scripts")
def test_what_a_pull_brought_back_goes_away_again(grown: Repository, newer: Repository) -> None:
    before = grown.files()
    grown.git("remote", "add", "upstream", str(newer.root))
    grown.git("pull", "--quiet", "--no-rebase", "upstream", "main", code=1)
    assert {"CHANGELOG.md", "reports/bench.md"} <= set(grown.git("diff", "--name-only", "--diff-filter=U").split())
    run(update).assert_refused("A merge is unfinished")
    for path in ("README.md", "pyproject.toml", "reports/metrics.json", "dvc.lock", "docs/configuration.md"):
        grown.git("checkout", "--ours", path)
    grown.commit_all("Pull")
    assert {"benchmarks/newer.py", "CHANGELOG.md"} <= grown.files()
    ended = run(update)
    assert not ended.code, ended.err
    assert grown.files() == before | {"conf/loss/hinge.yaml"} and grown.state()[1] == ""
    assert (grown.read("README.md"), grown.read("reports/metrics.json")) == (OWN_README, OWN_METRICS)
    assert grown.read(LIBRARY).endswith(ADDED)


@pytest.mark.long
@pytest.mark.usefixtures("without_scripts")
def test_a_project_without_the_upstreams_history_is_updated_as_well(grown: Repository, newer: Repository) -> None:
    # As in a repository that began as a template, whose commits were squashed.
    grown.git("checkout", "--quiet", "--orphan", "template")
    record = read_record()
    assert record is not None
    grown.write(RECORD.name, record.model_copy(update={"commit": "0" * 40}).text())
    grown.commit_all("Start")
    grown.git("branch", "--quiet", "-D", "main")
    ended = updated(newer)
    assert not ended.code, ended.err
    assert grown.read(LIBRARY).endswith(ADDED) and grown.read("README.md") == OWN_README
    assert not (grown.root / "benchmarks").exists()


def test_a_refusal_is_one_sentence_and_changes_nothing(
    project: Repository, clone: Repository, newer: Repository
) -> None:
    before = project.state()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(clone.root)
        updated(newer).assert_refused("was not adopted", "make adopt NAME=flowers")
        patch.chdir(project.root)
        run(update).assert_refused("There is no remote upstream", "make update UPSTREAM=URL")
        ended = run(update, "/nowhere/at/all")
        assert (ended.code, ended.err.count("\n")) == (1, 1) and "could not be fetched" in ended.err
        assert project.git("remote") == "" and project.state() == before
        ended = updated(newer, "--branch", "develop")
        assert ended.code == 1 and "The branch develop of upstream" in ended.err and project.git("remote") == ""
        project.git("remote", "add", "upstream", "https://user:secret@host/a.git")
        updated(newer).assert_refused("The remote upstream is https://user:***@host/a.git already", "set-url")
        project.git("remote", "set-url", "upstream", str(newer.root))
        project.write("LICENSE", "Mine")
        run(update).assert_refused("uncommitted changes (LICENSE)")
        project.git("restore", ".")
        project.write("conf/loss/hinge.yaml", "untracked")
        run(update).assert_refused("git did not start the merge", "conf/loss/hinge.yaml")
        assert project.read("conf/loss/hinge.yaml") == "untracked"
        (project.root / "conf/loss/hinge.yaml").unlink()
        assert project.state() == before
        project.write(RECORD.name, "name: [")
        project.commit_all("Damage the record")
        run(update).assert_refused(".adopted.yaml is damaged")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_checks_and_tests_pass_in_the_merged_project(grown: Repository, newer: Repository) -> None:
    assert not updated(newer).code
    assert_checks_pass(grown)
    if "\n.PHONY: test-quick" in grown.read("Makefile"):
        # The source of a workspace's commands does not exist, and tests of the real data would take it for that.
        replace(grown, source="").run("make", "--old-file=.venv/.set-up", "test-quick")
