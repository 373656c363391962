"""Measure the latency of `python src/serve.py` under a small load of parallel clients.

python benchmarks/http_clients.py --clients 4 --requests 50 --images 1

Each client has one connection and sends its next request after the previous response.
"""

import environment  # noqa: F401

# isort: split

import http.client
import json
import socket
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from common import print_result

STARTUP_TIMEOUT = 60  # seconds at most
WARM_UP = 5  # requests of each client before the measured ones


@contextmanager
def server() -> Iterator[int]:
    """Start the server for the model in models/ on a free port, and stop it afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as socket_:
        port = socket_.getsockname()[1]
    path = Path("conf/serve/default.yaml")
    path.write_text(f"host: 127.0.0.1\nport: {port}\n", encoding="utf-8")
    process = subprocess.Popen([sys.executable, "src/serve.py", "--model", "models"])
    try:
        yield port
    finally:
        process.terminate()
        process.wait()


def wait(port: int) -> None:
    """Wait until the server responds. Raises `TimeoutError`."""
    for _ in range(10 * STARTUP_TIMEOUT):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/ping")
            connection.getresponse()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"no answer on port {port} after {STARTUP_TIMEOUT} s")


def send_requests(port: int, body: str, requests: int) -> list[float]:
    """Return the latency in seconds of each request of one client."""
    connection, seconds = http.client.HTTPConnection("127.0.0.1", port), []
    for _ in range(WARM_UP + requests):
        start = time.perf_counter()
        connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        seconds.append(time.perf_counter() - start)
        if response.status != http.HTTPStatus.OK:
            raise RuntimeError(f"status {response.status}")
    return seconds[WARM_UP:]


def main() -> None:
    arguments = ArgumentParser(description=__doc__)
    arguments.add_argument("--clients", type=int, nargs="+", required=True)
    arguments.add_argument("--requests", type=int, required=True, help="of each client")
    arguments.add_argument("--images", type=int, default=1, help="in each request")
    arguments.add_argument("--data", type=Path, default=Path("data/processed"))
    options = arguments.parse_args()
    images = np.load(options.data / "test" / "images.npy", mmap_mode="r")[: options.images]
    body, numbers = json.dumps({"inputs": images.tolist()}), {}
    with server() as port:
        wait(port)
        for clients in options.clients:
            with ThreadPoolExecutor(clients) as pool:
                waits = [pool.submit(send_requests, port, body, options.requests) for _ in range(clients)]
                seconds = [second for waited in waits for second in waited.result()]
            for percent in (50, 99):
                numbers[f"p{percent}_of_{clients}"] = 1000 * float(np.percentile(seconds, percent))
    print_result(**numbers)


if __name__ == "__main__":
    main()
