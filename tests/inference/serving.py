"""The scoring server as a person starts it, and questions to it."""

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
    """A server that answers on `port` of this machine."""

    port: int

    def ask(self, images: np.ndarray) -> tuple[int, Any]:
        """Status and answer for images in MLflow's JSON: a list of predictions, or the error's message."""
        return self.post(json.dumps({"inputs": images.tolist()}))

    def post(self, body: str) -> tuple[int, Any]:
        """Status and answer for a request's body."""
        address, kind = f"http://127.0.0.1:{self.port}/invocations", {"Content-Type": "application/json"}
        try:
            with urllib.request.urlopen(urllib.request.Request(address, body.encode(), kind)) as answer:
                return answer.status, json.load(answer)["predictions"]
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)["message"]

    def latency(self, images: np.ndarray, times: int) -> float:
        """The median of the seconds that one request with these images takes."""
        body, seconds = json.dumps({"inputs": images.tolist()}), []
        for _ in range(times):
            start = time.perf_counter()
            self.post(body)
            seconds.append(time.perf_counter() - start)
        return float(np.median(seconds))


@contextmanager
def running(script: Path, folder: Path, *arguments: str) -> Iterator[Server]:
    """`python src/serve.py` in a project's folder, on a port that is free there; ended as by Ctrl-C or `kill`."""
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
        said, _ = process.communicate(timeout=60)
        print(said)  # where the tests fail it is shown
    assert process.returncode == 143, said
    assert "Traceback" not in said
