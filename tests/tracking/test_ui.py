"""`make ui` prints the address of the runs when the page answers, with one worker and without background jobs."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import requests

from cifar_pipeline.tracking import ui
from cifar_pipeline.utils.text import server_url
from helpers.config_project import ROOT, Project, run
from helpers.servers import fixed_response_server, free_port
from helpers.source_tree import EXPERIMENT
from ui import ui as show

SCRIPT = ROOT / "src" / "ui.py"


@contextmanager
def started_ui(folder: Path, port: int) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, str(SCRIPT), "--port", str(port), "--no-browser"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def test_the_address_is_printed_when_the_page_answers(project: Project, empty_database: Path) -> None:
    (project.folder / "mlflow.db").write_bytes(empty_database.read_bytes())
    port = free_port()
    with started_ui(project.folder, port) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith("The runs: "), process.stderr.read()
        assert "<title>MLflow</title>" in requests.get(f"http://127.0.0.1:{port}/", timeout=60).text
        address, _, experiment = line.removeprefix("The runs: ").partition("/#/experiments/")
        assert address == f"http://127.0.0.1:{port}" and experiment == "1?workflowType=machine_learning\n"
        found = requests.get(
            f"{address}/api/2.0/mlflow/experiments/get", params={"experiment_id": experiment[0]}, timeout=60
        )
        assert found.json()["experiment"]["name"] == EXPERIMENT
        # `mlflow server` and its one worker; more workers would be children of a supervisor.
        servers = psutil.Process(process.pid).children(recursive=True)
        assert len(servers) == 2 and not any("huey" in " ".join(each.cmdline()) for each in servers)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        psutil.wait_procs(servers, timeout=60)
        assert not any(each.is_running() for each in servers)
        assert process.stdout.read() == "Stop with Ctrl-C.\n" and "Traceback" not in process.stderr.read()


def test_a_port_in_use_is_refused_before_anything_starts(project: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        run(show, "--port", port).assert_refused(f"Cannot listen on 127.0.0.1:{port}", "make ui PORT=5002")
    run(show, "--port", 70000).assert_refused("a port is a number from 0 to 65535")
    assert not (project.folder / "mlflow.db").exists()


def test_the_page_of_a_server_is_named_without_starting_another(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = b'{"experiment": {"experiment_id": "7", "lifecycle_stage": "active", "artifact_location": "x"}}'
    with fixed_response_server() as server:
        server.reply, port = (200, experiment), server.server_port
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")
        monkeypatch.setattr(ui, "require_free", None)
        ended = run(show)
    assert (ended.code, ended.err) == (None, "")
    assert ended.out == f"The runs: http://127.0.0.1:{port}/#/experiments/7?workflowType=machine_learning\n"


@pytest.mark.parametrize(
    ("variables", "is_terminal", "opens"),
    [
        ({"DISPLAY": ":0"}, True, True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, True, True),
        ({"DISPLAY": ":0"}, False, False),
        ({"DISPLAY": ":10", "SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22"}, True, False),
        ({}, True, False),
    ],
)
def test_a_browser_opens_in_a_graphical_session(
    variables: dict[str, str], is_terminal: bool, opens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
    opened: list[str] = []
    monkeypatch.setattr(ui.webbrowser, "open", opened.append)
    ui.announce("http://127.0.0.1:5000", opens_browser=True)
    ui.announce("http://127.0.0.1:5000", opens_browser=False)
    assert opened == ["http://127.0.0.1:5000"] * opens


@pytest.mark.parametrize(
    ("uri", "url"),
    [
        ("", ""),
        ("sqlite:///mlflow.db", ""),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://me:secret@runs.example:8443/lab", "https://runs.example:8443/lab"),
    ],
)
def test_the_url_of_a_server_has_no_credentials(uri: str, url: str) -> None:
    assert server_url(uri) == url
