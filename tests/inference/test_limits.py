"""Test that the cost of a request is limited, and that other clients are served meanwhile."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from serving import Server, running
from small_model import random_images

from cifar_pipeline.inference import server as server_module
from cifar_pipeline.inference.server import MAX_DEPTH, LimitedRequests, Message, Receive, Send, bind, http_error
from helpers.config_project import ROOT, Project

JSON = {"Content-Type": "application/json"}
MAX_BYTES = 100_000


async def echo(scope: Message, receive: Receive, send: Send) -> None:
    """Respond with the size of a body, which must arrive in one message."""
    message = await receive()
    assert message["type"] == "http.request" and not message["more_body"]
    content = str(len(message["body"])).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(content))]})
    await send({"type": "http.response.body", "body": content})


@contextmanager
def echo_server(seconds: float = 10) -> Iterator[int]:
    """Run `echo` behind the limits in a thread; yield the port."""
    with bind("127.0.0.1", 0) as listener:
        app = LimitedRequests(echo, MAX_BYTES, seconds)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)
        assert not thread.is_alive()
        assert app.buffered_bytes == 0


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with echo_server() as port:
        yield port


def post(port: int, body: object, headers: dict[str, str] = JSON) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", "/invocations", body, headers)  # type: ignore[arg-type]
        response = connection.getresponse()
        content = response.read().decode()
        return response.status, json.loads(content)["message"] if response.status != 200 else content
    finally:
        connection.close()


def half_sent(port: int, head: str) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=20)
    client.sendall(f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{head}".encode())
    return client


def test_a_body_within_the_limits_arrives_in_one_message(port: int) -> None:
    assert post(port, b" " * MAX_BYTES) == (200, str(MAX_BYTES))
    assert post(port, iter([b"[1, ", b"2]"])) == (200, "6")
    assert post(port, b"") == (200, "0")


def test_a_body_over_the_limit_is_413_by_its_length_and_in_chunks(port: int) -> None:
    for body in (b" " * (MAX_BYTES + 1), b" " * (100 * MAX_BYTES), iter([b" " * MAX_BYTES, b" "])):
        status, message = post(port, body)
        assert status == 413 and message == "The request has more than 100,000 bytes. Send less at once."


def test_an_absurd_length_is_413_before_anything_is_sent(port: int) -> None:
    with half_sent(port, f"Expect: 100-continue\r\nContent-Length: {10**17}\r\n\r\n") as client:
        assert b"413" in client.recv(1000).partition(b"\r\n")[0]


def test_deep_nesting_and_endless_numbers_are_400(port: int) -> None:
    for body in (b"[" * 90_000, b'{"a":' * 15_000, b'{"inputs": [%s]}' % (b"9" * 5000)):
        status, message = post(port, body)
        assert status == 400 and ("nested deeper" in message or "more than 40 digits" in message)


def test_nesting_is_counted_across_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "READ_SIZE", 7)
    assert http_error(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH) is None
    assert http_error(b"[]" * 1000) is None
    assert http_error(b"[" * (MAX_DEPTH + 1)) is not None


def test_other_content_types_are_415(port: int) -> None:
    for content_type in ("application/vnd.apache.parquet", "text/csv", ""):
        assert post(port, b"PAR1", {"Content-Type": content_type})[0] == 415


def test_slow_clients_are_408_and_delay_no_others() -> None:
    with echo_server(seconds=1) as port:
        slow = [half_sent(port, "Content-Length: 10\r\n\r\n[") for _ in range(20)]
        start = time.monotonic()
        assert post(port, b"[]") == (200, "2")
        assert time.monotonic() - start < 0.9
        for client in slow:
            with client:
                assert b"408" in client.recv(1000).partition(b"\r\n")[0]


def test_concurrent_bodies_share_one_limit() -> None:
    with echo_server() as port:
        head = f"Content-Length: {MAX_BYTES}\r\n\r\n"
        clients = [half_sent(port, head + " " * (MAX_BYTES - 1)) for _ in range(server_module.MAX_CONCURRENT_BODIES)]
        assert eventually(lambda: post(port, b" " * 1000)[0], 503)
        assert post(port, b"") == (200, "0")
        for client in clients:
            client.close()
        assert eventually(lambda: post(port, b" " * 1000)[0], 200)


def eventually(request: Callable[[], int], expected: int) -> bool:
    """Repeat a request for up to ten seconds until the status is the expected one."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if request() == expected:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def server(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("limited")
    Project.made(folder)
    path = folder / "conf" / "serve" / "default.yaml"
    path.write_text(path.read_text().replace("max_images: 256", "max_images: 10"))
    with running(ROOT / "src" / "serve.py", folder, "--model", str(exported)) as server:
        yield server


def test_the_server_accepts_the_configured_number_of_images(server: Server) -> None:
    status, predictions = server.predict(random_images(10).astype(float))
    assert status == 200 and len(predictions) == 10
    status, message = server.predict(np.tile(random_images(10), (100, 1, 1, 1)))
    assert status == 413 and "Send at most 10 images at once" in message and "max_images" in message


HOSTILE = {
    "nested": "[" * 100_000,
    "nested within a request": '{"inputs": ' + "[" * 60_000 + "]" * 60_000 + "}",
    "a number of 5,000 digits": '{"inputs": [' + "9" * 5000 + "]}",
    "infinite": json.dumps({"inputs": [[[[7] * 3] * 32] * 32]}).replace("7", "1e999"),
    "not a number": json.dumps({"inputs": [[[[float("nan")] * 3] * 32] * 32]}),
    "words": json.dumps({"inputs": [[[["a"] * 3] * 32] * 32]}),
    "nothing": '{"inputs": null}',
    "a ragged image": json.dumps({"inputs": [[[[1, 2, 3], [1]]]]}),
    "no object": "3",
    "empty": "",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_invalid_input_is_400_with_a_message(server: Server, case: str) -> None:
    status, message = server.post(HOSTILE[case])
    assert status == 400 and 0 < len(message) < 1000
