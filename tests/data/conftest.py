"""A CIFAR-10 of 40 images with checksums of its own, and a web server that misbehaves on request."""

import io
import pickle
import tarfile
import threading
from collections.abc import Callable, Iterator
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from cifar_pipeline.data.sources.cifar10 import FOLDER, Cifar10


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy between the tests and their server, and no source but the one that a test names."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("CIFAR10_SOURCE", raising=False)


def batch(seed: int, images: int = 10) -> bytes:
    random = np.random.default_rng(seed)
    data = random.integers(0, 256, (images, 3072), np.uint8)
    return pickle.dumps({b"data": data, b"labels": [index % 2 for index in range(images)]}, protocol=2)


@pytest.fixture(scope="session")
def files() -> dict[str, bytes]:
    """The content of each file of the small CIFAR-10."""
    return {
        "batches.meta": pickle.dumps({b"label_names": [b"cat", b"dog"]}, protocol=2),
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
    return pack_files({f"{FOLDER}/{name}": content for name, content in (files | readme).items()})


@pytest.fixture(scope="session")
def pack() -> Callable[..., bytes]:
    return pack_files


def pack_files(contents: dict[str, bytes], *more: tarfile.TarInfo) -> bytes:
    """A .tar.gz with these files and, behind them, further entries without content."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for entry in more:
            tar.addfile(entry)
    return packed.getvalue()


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


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder, hidden ones too, with its content."""
    return lambda folder: {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
