"""Each job of a sweep has a log file in its folder, with every launcher, and a single run has none."""

import re

import pytest

from helpers.workspace import Workspace

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR) [\w.]+: .*")
SWEEP = ("-m", "seed=1,2", "trainer.max_epochs=1")


def scenario_in_process(workspace: Workspace) -> tuple[Workspace, str]:
    return workspace, workspace.train(*SWEEP)


def scenario_with_joblib(workspace: Workspace) -> tuple[Workspace, str]:
    return workspace, workspace.train(*SWEEP, "launcher=joblib", "-v")


def scenario_with_submitit(workspace: Workspace) -> tuple[Workspace, str]:
    return workspace, workspace.train(*SWEEP, "launcher=submitit_local")


def logs(workspace: Workspace) -> list[str]:
    """Return the content of each job's log file, and assert that every line has time, level and logger."""
    files = sorted((workspace.root / "multirun").glob("*/*/*/train.log"))
    texts = [file.read_text() for file in files]
    assert [file.parent.name for file in files] == ["0", "1"]
    for text in texts:
        assert all(LINE.fullmatch(line) for line in text.splitlines()), text
    assert not list(workspace.root.glob("*.log"))
    return texts


def assert_of_its_job(texts: list[str]) -> None:
    for number, text in enumerate(texts):
        assert f"INFO cifar_pipeline.sweeps.job: Trial {number + 1}/2: seed={number + 1} " in text
        assert text.count(": Trial ") == text.count("epoch 1/1") == 1
        assert "Saved the comparison" not in text


def test_jobs_in_one_process_each_write_their_lines(outcome):
    workspace, output = outcome(scenario_in_process)
    texts = logs(workspace)
    assert_of_its_job(texts)
    assert "DEBUG" not in "".join(texts) and "Lightning" not in "".join(texts)
    # On the console, lines have no columns.
    assert re.search(r"^\[1\] epoch 1/1 ", output, re.MULTILINE) and "INFO" not in output
    assert "INFO" not in workspace.run("python", "src/preprocess.py")
    assert not list(workspace.root.glob("*.log"))


@pytest.mark.long
def test_workers_of_joblib_inherit_the_level(outcome):
    workspace, output = outcome(scenario_with_joblib)
    texts = logs(workspace)
    assert_of_its_job(texts)
    for number, text in enumerate(texts):
        assert "DEBUG cifar_pipeline.stages.train: Fingerprint" in text
        assert re.search(rf"^[\d:]+ DEBUG +cifar_pipeline.stages.train  \[{number}\] Fingerprint", output, re.MULTILINE)


@pytest.mark.long
def test_jobs_of_submitit_write_the_same_file(outcome):
    workspace, _ = outcome(scenario_with_submitit)
    assert_of_its_job(logs(workspace))
