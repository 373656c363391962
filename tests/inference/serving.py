"""Start the scoring server as a user does, and send requests to it."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from helpers.servers import free_port, wait_for_answer


@dataclass(frozen=True)
class Server:
    """A server on `port` of this machine."""

    port: int

    def predict(self, images: np.ndarray) -> tuple[int, Any]:
        """POST images as MLflow's JSON; return the status, and the predictions or the error message."""
        return self.post(json.dumps({"inputs": images.tolist()}))

    def post(self, body: str) -> tuple[int, Any]:
        """POST a body; return the status, and the predictions or the error message."""
        url, headers = f"http://127.0.0.1:{self.port}/invocations", {"Content-Type": "application/json"}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body.encode(), headers)) as response:
                return response.status, json.load(response)["predictions"]
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)["message"]

    def latency(self, images: np.ndarray, times: int) -> float:
        """Return the median duration in seconds of a request with these images."""
        body, seconds = json.dumps({"inputs": images.tolist()}), []
        for _ in range(times):
            start = time.perf_counter()
            self.post(body)
            seconds.append(time.perf_counter() - start)
        return float(np.median(seconds))


@contextmanager
def running(script: Path, folder: Path, *arguments: str) -> Iterator[Server]:
    """Run `python src/serve.py` in a project's folder on a free port, and terminate it at the end."""
    port = free_port()
    path = folder / "conf" / "serve" / "default.yaml"
    path.write_text(path.read_text().replace("port: 5001", f"port: {port}"))
    process = subprocess.Popen(
        [sys.executable, str(script), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONUTF8": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for_answer(f"http://127.0.0.1:{port}/ping", process)
        yield Server(port)
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=60)
        print(output)  # shown if the test fails
    assert process.returncode == 143, output
    assert "Traceback" not in output
