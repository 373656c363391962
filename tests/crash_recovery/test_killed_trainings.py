"""A training that is killed, wherever, and begun again by the same command ends as if nothing had happened."""

import signal

import pytest
from torture import ENGINES, EPOCHS, KILLS_OF_ONE, MOST_REPEATED, STEPS, STOPPED, Moment, drawn, ordered, train

from helpers.workspace import sentences

EXACTLY = [
    Moment("start-up", 2.5),
    Moment("SIGTERM", 7),
    Moment("half a checkpoint", 16),
    Moment("Ctrl-C", 20),
    Moment("log", 2),
]
KILLED, TERMINATED, INTERRUPTED = STOPPED
MANY = 20


def ends_alike(copy, undisturbed, engine, moments):
    training, whole = train(copy, engine, moments), undisturbed(engine)
    assert not training.differences(whole), "\n".join(start.said for start in training.starts)
    outcome = training.outcome()
    assert (outcome["status"], outcome["code"]) == ("FINISHED", 0)
    for history in outcome["metrics"].values():
        assert [step for step, _ in history] == list(range(1, EPOCHS + 1))
    assert max(training.repeated()) <= MOST_REPEATED
    assert {step for start in training.starts for step in start.steps} == set(whole.starts[0].steps)
    return training


def test_killed_and_stopped_five_times_it_ends_with_the_same_weights_and_each_metric_once(copy, undisturbed):
    training = ends_alike(copy, undisturbed, "eager", EXACTLY)
    assert [start.code for start in training.starts] == [KILLED, TERMINATED, KILLED, INTERRUPTED, KILLED, 0]
    for start in training.starts:
        assert "Traceback" not in start.said
        if start.code in (TERMINATED, INTERRUPTED):
            assert start.said.splitlines()[-1].startswith("Stopped in epoch ")
    assert len(undisturbed("eager").starts[0].steps) == EPOCHS * STEPS


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ENGINES)
def test_twenty_moments_by_chance_change_nothing(origin, tmp_path, undisturbed, engine):
    moments = drawn(seed=7, count=MANY)
    for first in range(0, MANY, KILLS_OF_ONE):
        part = ordered(moments[first : first + KILLS_OF_ONE])
        ends_alike(origin.copy(tmp_path / str(first)), undisturbed, engine, part)


def test_a_sigterm_while_it_starts_ends_it_with_one_line(copy):
    training = copy.start("python", "-X", "importtime", "src/train.py")
    training.wait_for(" torch.nn")
    training.process.send_signal(signal.SIGTERM)
    said = training.end(code=128 + signal.SIGTERM)
    spoken = [line for line in sentences(said) if not line.startswith("import time:")]
    assert spoken == ["Stopped: the same command resumes."]
