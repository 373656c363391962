"""`rerun=true` that is killed goes on by the same command, and what finished before stays until it has finished."""

import shutil

import pytest
from torture import ENGINES, EPOCHS, KILLED, NEVER, STEPS, TRAINING, Moment, start

from helpers.workspace import Workspace

KILLED_IN = STEPS + 9  # a step of the second epoch
AGAIN = (*TRAINING, *ENGINES["eager"], "rerun=true")


@pytest.mark.long
def test_a_killed_rerun_goes_on_in_its_run_and_the_next_one_begins_anew(undisturbed, tmp_path) -> None:
    copy: Workspace = undisturbed("eager").workspace.copy(tmp_path / "copy")
    weights = copy.model()
    killed = start(copy, Moment("step", KILLED_IN), "train", *AGAIN)
    assert killed.code == KILLED and killed.steps[0] == "0:0"
    first, rerun = copy.runs()
    assert (first.info.status, rerun.info.status) == ("FINISHED", "RUNNING")
    (result,) = copy.root.glob(".cache/trainings/*/result")
    assert (result / "last").is_dir() and copy.model() == weights

    ended = start(copy, NEVER, "train", *AGAIN)
    assert ended.code == 0, ended.said
    assert "Resuming an interrupted rerun" in ended.said and "Resuming from checkpoint" in ended.said
    assert ended.steps[0].startswith("1:") and len(set(killed.steps) & set(ended.steps)) <= 1
    runs = copy.runs()
    assert [run.info.run_id for run in runs] == [first.info.run_id, rerun.info.run_id]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert copy.logged(rerun) == list(range(1, EPOCHS + 1))
    assert copy.json("models/run.json")["id"] == rerun.info.run_id and copy.model() == weights

    another = start(copy, Moment("step", 1), "train", *AGAIN)
    assert another.code == KILLED and another.steps == ["0:0"]
    assert len(copy.runs()) == 3 and copy.model() == weights
    shutil.rmtree(copy.root)
