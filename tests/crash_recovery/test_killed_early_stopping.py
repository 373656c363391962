"""A training that early stopping ends, killed and resumed, stops at the same epoch with the same weights."""

import json

import pytest
from torture import KILLED, Moment, train

STOPPED_AT = "Stopped at epoch "
# Within an epoch, while a checkpoint is written, and after the last epoch, before there is a result.
MOMENTS = [Moment("step", 50), Moment("half a checkpoint", 16), Moment("log", 3), Moment("export", 1)]


@pytest.mark.long
def test_killed_four_times_it_stops_at_the_same_epoch_with_the_same_weights(copy, origin, tmp_path):
    expected = train(origin.copy(tmp_path / "undisturbed"), "early stopping")
    metadata = expected.workspace.json("models/metadata.json")
    epochs = metadata["epochs"]
    assert 4 < epochs < 12
    line = f"Stopped at epoch {epochs} of 12: val/loss has not improved for 2 epochs"
    assert line in expected.starts[0].output.splitlines()
    assert metadata["stopped"] == line.removeprefix("Stopped at ")

    training = train(copy, "early stopping", MOMENTS)
    assert [start.code for start in training.starts] == [KILLED, KILLED, KILLED, KILLED, 0]
    assert not training.differences(expected), "\n".join(start.output for start in training.starts)
    assert copy.json("models/metadata.json")["stopped"] == metadata["stopped"]
    (run,) = copy.runs()
    assert run.data.tags["stopped"] == metadata["stopped"]
    names = {"train/gradient_norm", "val/f1_macro", "train/loss", "val/loss"}
    assert names <= set(run.data.metrics)
    assert json.loads(copy.read("models/run.json"))["id"] == run.info.run_id
    # The last process had nothing left to train, and says why it ended all the same.
    assert not training.starts[-1].steps and line in training.starts[-1].output.splitlines()
