"""Where a file cannot grow, a stage ends with one sentence, and earlier results are kept."""

from pathlib import Path

import pytest

from helpers.dir_snapshot import content_of

FULL = "The disk is full, or a size limit is reached"
LIMIT_FILES = str(Path(__file__).with_name("limit_files.py"))


def limited(workspace, kilobytes, script, *arguments, code=1):
    """Run a stage whose files are limited to `kilobytes`, and return its last line."""
    output = workspace.run("python", LIMIT_FILES, str(kilobytes), f"src/{script}.py", *arguments, code=code)
    assert "Traceback" not in output
    return output.splitlines()[-1]


def test_a_checkpoint_without_disk_space_fails_the_run_and_keeps_the_old_models(copy):
    models = content_of(copy.root / "models")
    last = limited(copy, 4000, "train", "model=wide", "optimizer=adam")
    assert last.startswith(FULL) and last.endswith("the same command resumes it.")
    assert content_of(copy.root / "models") == models
    assert [run.info.status for run in copy.runs()] == ["FAILED"]
    assert not list(copy.root.glob(".cache/**/*.part*"))


def test_a_data_set_without_disk_space_leaves_the_old_one(copy):
    processed = content_of(copy.root / "data")
    assert limited(copy, 1000, "preprocess", "data.val_fraction=0.3").startswith(FULL)
    assert content_of(copy.root / "data") == processed


@pytest.mark.long
def test_a_database_that_can_not_grow_is_named(copy):
    models = content_of(copy.root / "models")
    last = limited(copy, 8, "train", "seed=1")
    assert last.startswith(("MLflow's database cannot be used", FULL)) and "free some space" in last
    assert content_of(copy.root / "models") == models


@pytest.mark.long
def test_a_training_resumes_when_there_is_disk_space_again(copy):
    limited(copy, 4000, "train", "model=wide", "optimizer=adam")
    copy.train("model=wide", "optimizer=adam")
    assert [run.info.status for run in copy.runs()] == ["FINISHED"]
