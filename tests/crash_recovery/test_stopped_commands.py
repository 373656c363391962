"""SIGTERM stops commands that wait for a database or server within five seconds, and the next one cleans up."""

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


def stop_in_time(command, number=signal.SIGTERM):
    """Stop a command, check that it and its descendants exit within SECONDS, and return its output."""
    descendants = psutil.Process(command.process.pid).children(recursive=True)
    command.process.send_signal(number)
    sent = time.monotonic()
    command.process.wait(timeout=SECONDS)
    while alive := [process for process in descendants if process.is_running() and process.status() != "zombie"]:
        assert time.monotonic() - sent < SECONDS, alive
        time.sleep(0.1)
    return command.end(code=128 + number)


@pytest.mark.long
def test_a_training_that_waits_for_a_locked_database_is_stopped_and_the_next_one_ends_its_run(copy):
    add_own(copy, "")
    training = copy.start("python", "src/train.py", "loss=slow", *TRAINING)
    training.wait_for("epoch 1/")
    with closing(sqlite3.connect(copy.root / "mlflow.db", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")  # held until the process is gone, so its run can't be ended
        time.sleep(2)
        output = stop_in_time(training)
        database.execute("COMMIT")
    assert sentences(output)[-1].startswith(STOPPED)
    assert [run.info.status for run in copy.runs()] == ["RUNNING"]
    copy.train("experiment=debug")
    assert sorted(run.info.status for run in copy.runs()) == ["FINISHED", "KILLED"]


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_sweep_is_stopped_with_its_workers(copy, launcher):
    add_own(copy, "")
    arguments = ("-m", "seed=0,1", "loss=slow", "trainer.max_epochs=30", f"launcher={launcher}")
    sweep = copy.start("python", "src/train.py", *arguments)
    while len([run for run in copy.runs() if "fingerprint" in run.data.tags]) < 2:
        time.sleep(0.5)
    stop_in_time(sweep)
    assert copy.runs()[0].info.status == "KILLED"


def test_a_command_that_waits_for_a_silent_server_is_stopped(copy):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        command = copy.start("env", f"MLFLOW_TRACKING_URI={address}", "python", "src/registry.py", "list")
        connection, _ = server.accept()
        with connection:
            assert connection.recv(3) == b"GET"
            output = stop_in_time(command)
    assert sentences(output)[-1].startswith("Stopped")


@pytest.mark.long
def test_a_server_with_a_request_in_flight_is_stopped(copy):
    copy.train("experiment=debug")
    port = free_port()
    copy.edit("params.yaml", "overrides: {", f"overrides: {{serve: {{port: {port}}}, ")
    server = copy.start("python", "src/serve.py", "--model", "models")
    server.wait_for("Serving ")
    time.sleep(3)
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        threading.Event().wait(1)
        stop_in_time(server)
