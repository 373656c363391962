"""A killed `rerun=true` is resumed by the same command, and the old result stays until the rerun has finished."""

import shutil

import pytest
from torture import ENGINES, EPOCHS, KILLED, NEVER, STEPS, TRAINING, Moment, start

from helpers.workspace import Workspace

KILLED_AT = STEPS + 9  # a step of the second epoch
RERUN = (*TRAINING, *ENGINES["eager"], "rerun=true")


@pytest.mark.long
def test_a_killed_rerun_resumes_in_its_run_and_the_next_one_starts_from_scratch(undisturbed, tmp_path) -> None:
    copy: Workspace = undisturbed("eager").workspace.copy(tmp_path / "copy")
    weights = copy.model()
    killed = start(copy, Moment("step", KILLED_AT), "train", *RERUN)
    assert killed.code == KILLED and killed.steps[0] == "0:0"
    first, rerun = copy.runs()
    assert (first.info.status, rerun.info.status) == ("FINISHED", "RUNNING")
    (result,) = copy.root.glob(".cache/trainings/*/result")
    assert (result / "last").is_dir() and copy.model() == weights

    resumed = start(copy, NEVER, "train", *RERUN)
    assert resumed.code == 0, resumed.output
    assert "Resuming an interrupted rerun" in resumed.output and "Resuming from checkpoint" in resumed.output
    assert resumed.steps[0].startswith("1:") and len(set(killed.steps) & set(resumed.steps)) <= 1
    runs = copy.runs()
    assert [run.info.run_id for run in runs] == [first.info.run_id, rerun.info.run_id]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert copy.logged(rerun) == list(range(1, EPOCHS + 1))
    assert copy.json("models/run.json")["id"] == rerun.info.run_id and copy.model() == weights

    another = start(copy, Moment("step", 1), "train", *RERUN)
    assert another.code == KILLED and another.steps == ["0:0"]
    assert len(copy.runs()) == 3 and copy.model() == weights
    shutil.rmtree(copy.root)
