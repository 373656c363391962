"""Start servers on this machine and wait for them."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

SECONDS = 120  # to start, on a busy machine


def free_port() -> int:
    """Return an unused port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def wait_for_answer(address: str, process: "subprocess.Popen[Any]") -> None:
    """Wait until `process` serves this address. Raises AssertionError if it ends, or after SECONDS."""
    start = time.monotonic()
    while not responds(address):
        assert process.poll() is None, f"the server of {address} exited with {process.returncode}"
        assert time.monotonic() - start < SECONDS, f"{address} has not responded for {SECONDS} s"
        time.sleep(0.1)


def responds(address: str) -> bool:
    try:
        return requests.get(address, timeout=5).ok
    except requests.RequestException:
        return False


@contextmanager
def mlflow_server(folder: Path, database: str, workers: int) -> Iterator[int]:
    """Yield the port of an MLflow server with its runs in `database` and its artifacts in `folder`."""
    port = free_port()
    arguments = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]
    store = ["--backend-store-uri", database, "--artifacts-destination", str(folder / "files")]
    process = subprocess.Popen([sys.executable, *arguments, *store], cwd=folder)
    try:
        wait_for_answer(f"http://127.0.0.1:{port}/health", process)
        yield port
    finally:
        process.terminate()
        process.wait(30)
