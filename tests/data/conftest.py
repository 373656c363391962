"""A CIFAR-10 of 40 images with checksums of its own, and a web server that misbehaves on request."""

import threading
from collections.abc import Callable, Iterator
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cifar_pipeline.data.sources.cifar import FOLDER, Cifar10
from helpers.tiny_cifar10 import META, batch, pack


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy between the tests and their server, and no source but the one that a test names."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("CIFAR10_SOURCE", raising=False)


@pytest.fixture(scope="session")
def files() -> dict[str, bytes]:
    """The content of each file of the small CIFAR-10."""
    return {
        "batches.meta": META,
        "data_batch_1": batch(1),
        "data_batch_2": batch(2),
        "test_batch": batch(3, images=20),
    }


@pytest.fixture
def small(files: dict[str, bytes]) -> Cifar10:
    return Cifar10({name: md5(content).hexdigest() for name, content in files.items()})


@pytest.fixture(scope="session")
def archive(files: dict[str, bytes]) -> bytes:
    readme = {"readme.html": b"<html>as in the published archive</html>"}
    return pack({f"{FOLDER}/{name}": content for name, content in (files | readme).items()})


class Server:
    """Serves `content` at every path. `answer` may be set to another way to answer a request."""

    def __init__(self) -> None:
        self.content = b""
        self.asked: list[str | None] = []  # the Range of each request
        self.answer: Callable[[BaseHTTPRequestHandler], None] = self.send
        self.released = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.headers.get("Range"))
                server.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/cifar-10-python.tar.gz"

    @property
    def etag(self) -> str:
        return f'"{md5(self.content).hexdigest()}"'

    def send(self, request: BaseHTTPRequestHandler, kind: str = "application/gzip", only: int | None = None) -> None:
        """Answer as a good server does; `only` so many bytes, then break off."""
        start = 0
        if (asked := request.headers.get("Range")) and request.headers.get("If-Range") in (None, self.etag):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(self.content):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(self.content)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        request.send_header("Content-Type", kind)
        request.send_header("ETag", self.etag)
        request.send_header("Content-Length", str(len(self.content) - start))
        request.end_headers()
        request.wfile.write(self.content[start:][:only])

    def break_off_once(self, request: BaseHTTPRequestHandler) -> None:
        self.answer = self.send
        self.send(request, only=len(self.content) // 2)

    def hang(self, request: BaseHTTPRequestHandler) -> None:
        self.released.wait(20)

    def hang_after_half(self, request: BaseHTTPRequestHandler) -> None:
        self.answer = self.hang
        self.send(request, only=len(self.content) // 2)
        self.released.wait(20)


@pytest.fixture
def server(archive: bytes) -> Iterator[Server]:
    server = Server()
    server.content = archive
    yield server
    server.released.set()
    server.http.shutdown()
    server.http.server_close()
