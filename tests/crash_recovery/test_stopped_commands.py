"""SIGTERM ends real commands within five seconds where they wait for somebody else, and the next one clears up."""

import signal
import socket
import sqlite3
import threading
import time
from contextlib import closing

import psutil
import pytest
from torture import TRAINING

from helpers.servers import free_port
from helpers.workspace import add_own, sentences

SECONDS = 5
STOPPED = ("Stopped: the same command resumes.", "Stopped before the cleanup was complete")


def ended_in_time(command, number=signal.SIGTERM):
    """What a command said that was stopped, and how it ended, which was within the seconds and with all it started."""
    below = psutil.Process(command.process.pid).children(recursive=True)
    command.process.send_signal(number)
    sent = time.monotonic()
    command.process.wait(timeout=SECONDS)
    while alive := [process for process in below if process.is_running() and process.status() != "zombie"]:
        assert time.monotonic() - sent < SECONDS, alive
        time.sleep(0.1)
    return command.end(code=128 + number)


@pytest.mark.long
def test_a_training_that_waits_for_a_locked_database_is_ended_and_its_run_by_the_next(copy):
    add_own(copy, "")
    training = copy.start("python", "src/train.py", "loss=slow", *TRAINING)
    training.wait_for("epoch 1/")
    with closing(sqlite3.connect(copy.root / "mlflow.db", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")  # held until the process is gone, so its run can't be ended
        time.sleep(2)
        said = ended_in_time(training)
        database.execute("COMMIT")
    assert sentences(said)[-1].startswith(STOPPED)
    assert [run.info.status for run in copy.runs()] == ["RUNNING"]
    copy.train("experiment=debug")
    assert sorted(run.info.status for run in copy.runs()) == ["FINISHED", "KILLED"]


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_sweep_is_ended_with_its_workers(copy, launcher):
    add_own(copy, "")
    words = ("-m", "seed=0,1", "loss=slow", "trainer.max_epochs=30", f"launcher={launcher}")
    sweep = copy.start("python", "src/train.py", *words)
    while len([run for run in copy.runs() if "fingerprint" in run.data.tags]) < 2:
        time.sleep(0.5)
    ended_in_time(sweep)
    assert copy.runs()[0].info.status == "KILLED"


def test_a_command_that_waits_for_a_server_that_says_nothing_is_ended(copy):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        command = copy.start("env", f"MLFLOW_TRACKING_URI={address}", "python", "src/registry.py", "list")
        connection, _ = server.accept()
        with connection:
            assert connection.recv(3) == b"GET"
            said = ended_in_time(command)
    assert sentences(said)[-1].startswith("Stopped")


@pytest.mark.long
def test_a_server_with_a_request_in_flight_is_ended(copy):
    copy.train("experiment=debug")
    port = free_port()
    copy.edit("params.yaml", "overrides: {", f"overrides: {{serve: {{port: {port}}}, ")
    server = copy.start("python", "src/serve.py", "--model", "models")
    server.wait_for("Answering for")
    time.sleep(3)
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        threading.Event().wait(1)
        ended_in_time(server)
