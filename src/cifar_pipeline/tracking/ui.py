"""Start MLflow's server on this machine and open its page in the browser, or that of the server in MLFLOW_TRACKING_URI.

MLflow starts four workers and a runner of background jobs; one person needs one worker, and the pipeline no jobs.
"""

import logging
import os
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import requests

from cifar_pipeline.config.tracking_uri import tracking_uri
from cifar_pipeline.tracking.client import connect
from cifar_pipeline.utils.console import clear_status, status
from cifar_pipeline.utils.errors import EnvironmentFailure, UserError
from cifar_pipeline.utils.paths import main_workspace
from cifar_pipeline.utils.process import end_process_tree
from cifar_pipeline.utils.text import server_url

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
SERVER_LOG = Path(".cache/mlflow-server.log")
POLL_SECONDS = 0.2
# Until a request counts as unanswered: the first one waits for MLflow's imports.
REQUEST_SECONDS = 60
# Linux's variables of a graphical session.
DISPLAY_VARIABLES = ("DISPLAY", "WAYLAND_DISPLAY")


def show_runs(port: int, *, opens_browser: bool = True) -> None:
    """Serve MLflow's page until the process is stopped, and print the address of the runs when the page answers.

    Where MLFLOW_TRACKING_URI names a server, print and open the address of the runs there.

    Args:
        port: of 127.0.0.1.
        opens_browser: whether to open the address where there is a graphical browser.

    Raises:
        UserError: the port is in use, or `connect` refuses the store.
        EnvironmentFailure: MLflow's server ended.
    """
    uri = tracking_uri()
    server = server_url(uri)
    if not server:
        require_free(port)
    status("Opening MLflow's store")
    experiment = connect()[1]
    if server:
        announce(runs_address(server, experiment), opens_browser)
        return
    status("Starting MLflow's server")
    with _server(uri, port) as process:
        page = f"http://{HOST}:{port}"
        _wait_for_page(page, process)
        announce(runs_address(page, experiment), opens_browser)
        log.info("Stop with Ctrl-C.")
        with suppress(KeyboardInterrupt):
            raise_ended(process.wait())


def runs_address(server: str, experiment: str) -> str:
    """Return the address of an experiment's runs, because MLflow's start page is about language models."""
    return f"{server.rstrip('/')}/#/experiments/{experiment}?workflowType=machine_learning"


def require_free(port: int) -> None:
    """Raise UserError if nothing can listen on the port."""
    try:
        socket.create_server((HOST, port)).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "a port is a number from 0 to 65535"
        raise UserError(
            f"Cannot listen on {HOST}:{port} ({reason}): end what uses the port, such as another `make ui`, or choose "
            "another one with `make ui PORT=5002`."
        ) from None


@contextmanager
def _server(uri: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run `mlflow server` with one worker and without background jobs, its output in SERVER_LOG, and end it."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    options = ["--backend-store-uri", uri, "--uvicorn-opts", "--timeout-graceful-shutdown 1"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log_file = main_workspace() / SERVER_LOG
    with log_file.open("wb") as output:
        process = subprocess.Popen([*command, *options], env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        end_process_tree(process)


def _wait_for_page(page: str, process: subprocess.Popen[bytes]) -> None:
    while True:
        if process.poll() is not None:
            raise_ended(process.returncode)
        try:
            if requests.get(page, timeout=REQUEST_SECONDS).ok:
                return
        except requests.RequestException:
            time.sleep(POLL_SECONDS)


def raise_ended(code: int) -> NoReturn:
    """Raise EnvironmentFailure because MLflow's server has ended by itself."""
    raise EnvironmentFailure(f"MLflow's server ended with exit code {code}; its messages are in {SERVER_LOG}.")


def announce(address: str, opens_browser: bool) -> None:
    clear_status()
    print(f"The runs: {address}", flush=True)
    if opens_browser and has_graphical_browser():
        webbrowser.open(address)


def has_graphical_browser() -> bool:
    """Return whether a browser can show a page here: not over SSH, in a pipe, or without a graphical session."""
    if "SSH_CONNECTION" in os.environ or not sys.stdout.isatty():
        return False
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in DISPLAY_VARIABLES)
