"""An unreachable MLflow server costs seconds; one that is lost later costs no training and no metric."""

import socket
import threading
import time
from contextlib import suppress

import mlflow
import pytest
from mlflow import MlflowClient

from helpers.servers import mlflow_server
from helpers.source_tree import EXPERIMENT
from helpers.workspace import logged_steps

EPOCHS = 6
SECONDS = 60
SENTENCE = "The MLflow server at {} does not respond"


@pytest.fixture
def server(tmp_path):
    """The port of an MLflow server."""
    with mlflow_server(tmp_path, f"sqlite:///{tmp_path}/mlflow.db", workers=1) as port:
        yield port


class Proxy:
    """A proxy to a local port, which can be shut down to simulate a lost server."""

    def __init__(self, to, port=0):
        self.to, self.sockets = to, []
        self.listening = socket.create_server(("127.0.0.1", port))
        self.port = self.listening.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                near = self.listening.accept()[0]
                far = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                return
            self.sockets += [near, far]
            for pair in ((near, far), (far, near)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    def shut_down(self):
        for end in (self.listening, *self.sockets):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def pump(source, target):
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def test_a_server_that_refuses_connections_is_reported_in_seconds_and_before_training(copy):
    unreachable = "http://127.0.0.1:9"
    start = time.monotonic()
    output = copy.run("env", f"MLFLOW_TRACKING_URI={unreachable}", "python", "src/train.py", "seed=1", code=1)
    assert time.monotonic() - start < SECONDS
    assert output.splitlines()[-1].startswith(SENTENCE.format(unreachable))
    assert "Traceback" not in output and "epoch 1/" not in output


@pytest.mark.long
def test_a_lost_server_stops_no_training_and_receives_everything_when_it_is_back(copy, server):
    proxy = Proxy(server)
    uri = f"http://127.0.0.1:{proxy.port}"
    command = [
        "env",
        f"MLFLOW_TRACKING_URI={uri}",
        "python",
        "src/train.py",
        "loss=slow",
        f"trainer.max_epochs={EPOCHS}",
    ]
    training = copy.start(*command)
    training.wait_for(f"epoch 1/{EPOCHS}")
    proxy.shut_down()
    output = training.end(code=1)
    assert f"epoch {EPOCHS}/{EPOCHS}" in output and "Traceback" not in output
    assert output.splitlines()[-1].startswith(SENTENCE.format(uri))

    restored = Proxy(server, proxy.port)
    output = copy.run(*command)
    assert "has already finished: its weights are reused" in output and "epoch" not in output
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert run.info.status == "FINISHED"
    for key in ("train/loss", "val/accuracy", "lr"):
        assert logged_steps(client, run.info.run_id, key) == list(range(1, EPOCHS + 1))
    assert [model.model_id for model in run.outputs.model_outputs]
    restored.shut_down()
    mlflow.set_tracking_uri(None)
