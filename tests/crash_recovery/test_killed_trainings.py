"""A training that is killed at any moment and resumed by the same command ends with the same result."""

import signal

import pytest
from torture import (
    ENGINES,
    EPOCHS,
    KILLS_PER_TRAINING,
    MAX_REPEATED,
    STEPS,
    STOPPED,
    Moment,
    ordered,
    random_moments,
    train,
)

from cifar_pipeline.tracking.trial import RUN_METRICS
from helpers.workspace import sentences

FIXED_MOMENTS = [
    Moment("start-up", 0.5),
    Moment("SIGTERM", 7),
    Moment("half a checkpoint", 16),
    Moment("Ctrl-C", 20),
    Moment("log", 2),
]
KILLED, TERMINATED, INTERRUPTED = STOPPED
NUM_RANDOM_MOMENTS = 20


def assert_same_outcome(copy, undisturbed, engine, moments):
    training, expected = train(copy, engine, moments), undisturbed(engine)
    assert not training.differences(expected), "\n".join(start.output for start in training.starts)
    outcome = training.outcome()
    assert (outcome["status"], outcome["code"]) == ("FINISHED", 0)
    assert set(RUN_METRICS) <= outcome["metrics"].keys()
    for metric, history in outcome["metrics"].items():
        expected_steps = [0] if metric in RUN_METRICS else list(range(1, EPOCHS + 1))
        assert [step for step, _ in history] == expected_steps, metric
    assert max(training.repeated()) <= MAX_REPEATED
    assert {step for start in training.starts for step in start.steps} == set(expected.starts[0].steps)
    return training


def test_killed_and_stopped_five_times_it_ends_with_the_same_weights_and_each_metric_once(copy, undisturbed):
    training = assert_same_outcome(copy, undisturbed, "eager", FIXED_MOMENTS)
    assert [start.code for start in training.starts] == [KILLED, TERMINATED, KILLED, INTERRUPTED, KILLED, 0]
    for start in training.starts:
        assert "Traceback" not in start.output
        if start.code in (TERMINATED, INTERRUPTED):
            assert start.output.splitlines()[-1].startswith("Stopped in epoch ")
    assert len(undisturbed("eager").starts[0].steps) == EPOCHS * STEPS


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ENGINES)
def test_twenty_random_kills_change_nothing(origin, tmp_path, undisturbed, engine):
    moments = random_moments(seed=7, count=NUM_RANDOM_MOMENTS)
    for first in range(0, NUM_RANDOM_MOMENTS, KILLS_PER_TRAINING):
        batch = ordered(moments[first : first + KILLS_PER_TRAINING])
        assert_same_outcome(origin.copy(tmp_path / str(first)), undisturbed, engine, batch)


def test_sigterm_during_startup_ends_it_with_one_line(copy):
    training = copy.start("python", "-X", "importtime", "src/train.py")
    training.wait_for(" torch.nn")
    training.process.send_signal(signal.SIGTERM)
    output = training.end(code=128 + signal.SIGTERM)
    messages = [line for line in sentences(output) if not line.startswith("import time:")]
    assert messages == ["Stopped: the same command resumes."]
