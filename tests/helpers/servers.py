"""Start servers on this machine and wait for them."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
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
def mlflow_server(
    folder: Path, database: str, workers: int, options: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> Iterator[int]:
    """Yield the port of an MLflow server with its runs in `database` and its artifacts in `folder`."""
    port = free_port()
    arguments = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]
    store = ["--backend-store-uri", database, "--artifacts-destination", str(folder / "files")]
    environment = {**os.environ, **(variables or {})}
    process = subprocess.Popen([sys.executable, *arguments, *store, *options], cwd=folder, env=environment)
    try:
        wait_for_answer(f"http://127.0.0.1:{port}/health", process)
        yield port
    finally:
        process.terminate()
        process.wait(30)


class FixedResponse(BaseHTTPRequestHandler):
    """Respond to every request with the server's `reply`."""

    def do_POST(self) -> None:
        code, body = self.server.reply  # type: ignore[attr-defined]
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(code)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.do_POST()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def fixed_response_server() -> Iterator[Any]:
    """Yield an HTTP server on this machine; its attribute `reply` is the status and body of every response."""
    with ThreadingHTTPServer(("127.0.0.1", 0), FixedResponse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        """Print nothing."""


@contextmanager
def serve_folder(folder: Path) -> Iterator[str]:
    """Yield the address at which the files of a folder are served."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
