"""Find and download the weights of timm and torchvision, from a server that misbehaves on request."""

import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save
from torchvision import models

from cifar_pipeline.models import default_weights
from cifar_pipeline.models.default_weights import DefaultWeights, timm_weights, torchvision_weights
from cifar_pipeline.utils.errors import UserError
from helpers.parameters import some_of
from helpers.servers import free_port

TENSORS = {"fc.weight": torch.arange(100_000.0)}
CONTENT = save(TENSORS)
NAME = f"resnet18-{sha256(CONTENT).hexdigest()[:8]}.pth"
PACKAGES = {"tf_efficientnet_lite0": "packaged_lite0", "tf_efficientnet_lite1": "packaged_lite1"}
XET_TOKEN = "/api/models/timm/resnet18.a1_in1k/xet-read-token/" + "c" * 40
PUBLISHED = "/timm/resnet18.a1_in1k/resolve/main/model.safetensors"
# Seconds after which a host is given up in these tests, and within which a call must have ended on a busy machine.
PATIENCE, MOST_SECONDS = 1.5, 15
CHUNK = 1 << 16  # bytes
Request = BaseHTTPRequestHandler


class Server:
    """Serves `files` by their path, as the Hugging Face Hub does. `answer` may be set to another way to answer."""

    def __init__(self) -> None:
        self.files = {PUBLISHED: CONTENT, f"/{NAME}": CONTENT}
        self.asked: list[tuple[str, str]] = []  # method and path of each request for a file
        self.answer: Callable[[Request], None] = self.send
        self.released = threading.Event()
        self.pause = 0.0  # seconds after each chunk
        self.xet_port = 0  # of the host from which files are to be received by the protocol Xet
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == XET_TOKEN:
                    server.send_xet_token(self)
                elif not self.path.startswith("/api"):
                    server.asked.append((self.command, self.path))
                    server.answer(self)

            def do_HEAD(self) -> None:
                self.do_GET()

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def send(self, request: Request, length: int | None = None) -> None:
        """Answer as a good server does; send only `length` bytes of the file."""
        content = self.files.get(request.path)
        if content is None:
            request.send_response(404)
            request.send_header("X-Error-Code", "EntryNotFound")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.send_header("X-Repo-Commit", "c" * 40)
        request.send_header("ETag", f'"{sha256(content).hexdigest()}"')
        request.send_header("Content-Length", str(len(content) - start))
        if self.xet_port:
            request.send_header("X-Xet-Hash", "d" * 64)
            request.send_header("X-Xet-Refresh-Route", self.url + XET_TOKEN)
        request.end_headers()
        if request.command == "GET":
            for part in range(start, len(content) if length is None else length, CHUNK):
                request.wfile.write(content[part : part + CHUNK][: None if length is None else length - part])
                time.sleep(self.pause)

    def send_xet_token(self, request: Request) -> None:
        request.send_response(200)
        request.send_header("X-Xet-Cas-Url", f"http://127.0.0.1:{self.xet_port}")
        request.send_header("X-Xet-Access-Token", "token")
        request.send_header("X-Xet-Token-Expiration", str(int(time.time()) + 3600))
        request.send_header("Content-Length", "0")
        request.end_headers()

    def send_half(self, request: Request) -> None:
        """Break off after half of the file, wherever it was asked to begin."""
        del request.headers["Range"]
        self.send(request, len(CONTENT) // 2)

    def break_off_once(self, request: Request) -> None:
        if request.command == "GET":
            self.answer = self.send
            self.send_half(request)
        else:
            self.send(request)

    def send_half_and_stall(self, request: Request) -> None:
        self.send_half(request)
        if request.command == "GET":
            self.released.wait(60)

    def stall(self, request: Request) -> None:
        self.released.wait(60)

    def send_page(self, request: Request) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "text/html")
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(b"<html>log in</html>")

    def fail(self, request: Request) -> None:
        request.send_error(503)

    def find_nothing(self, request: Request) -> None:
        request.send_error(404)

    def close(self) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def caches(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the libraries ask the server, without a proxy in between, and keep files in an empty folder."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "caches" / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "caches" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    set_hub(monkeypatch, server.url)
    monkeypatch.setattr(models.get_model_weights("resnet18").DEFAULT.value, "url", f"{server.url}/{NAME}")
    return tmp_path / "caches"


def set_hub(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What HF_ENDPOINT does when huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_weights, "ANSWER_SECONDS", PATIENCE)
    monkeypatch.setattr(default_weights, "SILENCE_SECONDS", PATIENCE)
    # pooch waits for a second before it tries again.
    monkeypatch.setattr("pooch.core.time", SimpleNamespace(sleep=lambda seconds: None))


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of tf_efficientnet_lite0 in a Python package; return their path."""
    file = tmp_path / "packages" / PACKAGES["tf_efficientnet_lite0"] / "models" / "lite0-0123.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    (file.parents[1] / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    return file


def complete_files(caches: Path) -> list[Path]:
    """Return what a library would take for a file with weights, or for a part of one that it can use no more."""
    return [path for path in caches.rglob("*.*") if path.suffix in (".safetensors", ".pth", ".bin", ".incomplete")]


def failure(weights: DefaultWeights) -> str:
    """Return the sentence with which `fetch` fails in time, offering what needs no network."""
    start = time.monotonic()
    with pytest.raises(UserError) as raised:
        weights.fetch()
    assert time.monotonic() - start < MOST_SECONDS
    message = str(raised.value)
    assert weights.title in message and "\n" not in message and message.count(". ") == 0
    for alternative in ("model.weights=PATH", "model.weights=runs:/RUN/best", "model.weights=null"):
        assert alternative in message
    return message


def test_weights_of_an_installed_package_need_no_download(packaged: Path, server: Server) -> None:
    for name in ("tf_efficientnet_lite0", "tf_efficientnet_lite0.in1k"):
        weights = timm_weights(name, PACKAGES)
        assert (weights.title, weights.input_size) == ("packaged_lite0", 224)
        assert weights.mean == weights.std == (0.5, 0.5, 0.5)
        assert weights.fetch() == packaged
    assert server.asked == []


def test_a_package_has_only_the_default_weights_of_its_network(packaged: Path) -> None:
    packages = {"resnet18": "packaged_lite0"}
    assert timm_weights("resnet18", packages).fetch() == packaged
    assert timm_weights("resnet18.tv_in1k", packages).title == "resnet18.tv_in1k"


def test_a_package_that_is_not_installed_or_empty_is_passed_over(packaged: Path) -> None:
    assert timm_weights("tf_efficientnet_lite1", PACKAGES).title == "tf_efficientnet_lite1.in1k"
    packaged.unlink()
    assert timm_weights("tf_efficientnet_lite0", PACKAGES).title == "tf_efficientnet_lite0.in1k"


@pytest.mark.parametrize(
    ("weights", "title", "size", "mean"),
    [
        (lambda: timm_weights("resnet18", {}), "resnet18.a1_in1k", 224, 0.485),
        (lambda: timm_weights("resnet18.tv_in1k", {}), "resnet18.tv_in1k", 224, 0.485),
        (lambda: timm_weights("tf_efficientnet_lite2", {}), "tf_efficientnet_lite2.in1k", 260, 0.5),
        (lambda: torchvision_weights("resnet18"), "ResNet18_Weights.IMAGENET1K_V1", 224, 0.485),
        (lambda: torchvision_weights("efficientnet_b1"), "EfficientNet_B1_Weights.IMAGENET1K_V2", 240, 0.485),
    ],
)
def test_weights_are_found_without_a_connection(
    weights: Callable[[], DefaultWeights], title: str, size: int, mean: float, server: Server
) -> None:
    found = weights()
    assert (found.title, found.input_size, found.mean[0]) == (title, size, mean)
    assert len(found.mean) == len(found.std) == 3
    assert server.asked == []


def test_a_file_of_the_hub_is_downloaded_once_to_its_cache(server: Server, caches: Path) -> None:
    weights = timm_weights("resnet18", {})
    path = weights.fetch()
    assert torch.equal(load_file(path)["fc.weight"], TENSORS["fc.weight"])
    assert path.is_relative_to(caches / "hub" / "models--timm--resnet18.a1_in1k" / "snapshots")
    assert ("GET", PUBLISHED) in server.asked
    server.asked.clear()
    assert weights.fetch() == timm_weights("resnet18.a1_in1k", {}).fetch() == path
    assert server.asked == []


def test_a_repository_without_safetensors_has_another_file(server: Server) -> None:
    server.files = {PUBLISHED.replace("model.safetensors", "pytorch_model.bin"): CONTENT}
    path = timm_weights("resnet18", {}).fetch()
    assert path.name == "pytorch_model.bin" and path.read_bytes() == CONTENT
    server.asked.clear()
    assert timm_weights("resnet18", {}).fetch() == path and server.asked == []


def test_a_repository_without_weights_is_named(server: Server) -> None:
    server.files = {}
    message = failure(timm_weights("resnet18", {}))
    assert "timm/resnet18.a1_in1k has none of the files model.safetensors, pytorch_model.bin" in message


def test_a_file_of_torchvision_is_downloaded_once_to_the_cache_of_torch(server: Server, caches: Path) -> None:
    weights = torchvision_weights("resnet18")
    path = weights.fetch()
    assert path == caches / "torch" / "hub" / "checkpoints" / NAME and path.read_bytes() == CONTENT
    server.asked.clear()
    assert weights.fetch() == path and server.asked == []


def test_a_network_of_timm_that_is_not_on_the_hub_has_a_url(
    server: Server, caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = dataclasses.replace(timm.get_pretrained_cfg("gcvit_tiny"), url=f"{server.url}/{NAME}")
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: published)
    path = timm_weights("gcvit_tiny", {}).fetch()
    assert path == caches / "torch" / "hub" / "checkpoints" / NAME and path.read_bytes() == CONTENT


LIBRARIES = [lambda: timm_weights("resnet18", {}), lambda: torchvision_weights("resnet18")]
each_library = pytest.mark.parametrize("find", LIBRARIES, ids=["timm", "torchvision"])


@pytest.mark.parametrize("find", some_of(LIBRARIES, 1), ids=["timm", "torchvision"])
@pytest.mark.usefixtures("impatient")
def test_a_slow_host_is_waited_for(find: Callable[[], DefaultWeights], server: Server) -> None:
    """What counts is how long it is silent, not how long it takes."""
    server.pause = 3 * PATIENCE / (len(CONTENT) / CHUNK)
    assert find().fetch().read_bytes() == CONTENT


@pytest.mark.long
@each_library
def test_a_connection_that_breaks_off_is_tried_again(find: Callable[[], DefaultWeights], server: Server) -> None:
    server.answer = server.break_off_once
    assert find().fetch().read_bytes() == CONTENT
    assert [method for method, _ in server.asked].count("GET") == 2


@each_library
def test_calls_at_the_same_time_download_a_file_once(find: Callable[[], DefaultWeights], server: Server) -> None:
    server.answer = lambda request: (time.sleep(0.3), server.send(request))[1]
    with ThreadPoolExecutor(3) as pool:
        paths = {future.result() for future in [pool.submit(find().fetch) for _ in range(3)]}
    assert len(paths) == 1
    assert [method for method, _ in server.asked].count("GET") == 1


HUB_REASONS = {
    "stall": "no answer within 1.5 s",
    "send_half_and_stall": "no progress for 1.5 s",
    "send_half": "no progress for 1.5 s",
    "send_page": "not that of a Hugging Face Hub, but of a login page",
    "find_nothing": "HTTP error 404 Not Found",
    "fail": "HTTP error 503 Service Unavailable",
}
TORCHVISION_REASONS = HUB_REASONS | {
    "send_half_and_stall": "no data for 1.5 s",
    "send_half": "transfer interrupted",
    "send_page": "a web page instead of the file",
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("answer", HUB_REASONS)
@pytest.mark.parametrize(("find", "reasons"), [*zip(LIBRARIES, (HUB_REASONS, TORCHVISION_REASONS), strict=True)])
def test_a_bad_answer_is_named_and_leaves_no_file(
    find: Callable[[], DefaultWeights], reasons: dict[str, str], answer: str, server: Server, caches: Path
) -> None:
    server.answer = getattr(server, answer)
    assert reasons[answer] in failure(find())
    assert complete_files(caches) == []


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("answer", some_of(TORCHVISION_REASONS, 0, 2))
def test_after_a_bad_answer_to_torchvision_the_file_is_downloaded(answer: str, server: Server, caches: Path) -> None:
    server.answer = getattr(server, answer)
    failure(torchvision_weights("resnet18"))
    server.answer = server.send
    assert torchvision_weights("resnet18").fetch().read_bytes() == CONTENT


@pytest.mark.usefixtures("impatient")
def test_a_host_of_xet_that_refuses_connections_is_given_up(
    server: Server, caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hf_xet tries again for minutes."""
    monkeypatch.setenv("HF_HOME", str(caches))
    server.xet_port = free_port()
    assert "no progress for 1.5 s" in failure(timm_weights("resnet18", {}))
    assert ("GET", PUBLISHED) not in server.asked
    assert complete_files(caches) == []


def test_a_file_with_another_hash_than_in_its_name_is_refused(server: Server, caches: Path) -> None:
    server.files = {f"/{NAME}": CONTENT[:-1] + b"?"}
    assert "is not the published one, its SHA-256 is" in failure(torchvision_weights("resnet18"))
    assert complete_files(caches) == []


def test_a_file_of_the_hub_of_another_size_than_announced_is_refused(server: Server, caches: Path) -> None:
    def answer(request: Request) -> None:
        server.files[PUBLISHED] = CONTENT if request.command == "HEAD" else CONTENT[:-1]
        server.send(request)

    server.answer = answer
    assert "size" in failure(timm_weights("resnet18", {}))
    assert complete_files(caches) == []


@pytest.mark.usefixtures("packaged")
def test_without_a_connection_the_message_offers_what_is_installed(
    monkeypatch: pytest.MonkeyPatch, caches: Path
) -> None:
    set_hub(monkeypatch, f"http://127.0.0.1:{free_port()}")
    message = failure(timm_weights("resnet18", PACKAGES))
    assert "from 127.0.0.1 (connection refused)" in message
    assert "model=timm model.name=tf_efficientnet_lite0 (installed)" in message
    assert complete_files(caches) == []


def test_without_a_connection_torchvision_needs_a_file(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    url = f"http://127.0.0.1:{free_port()}/{NAME}"
    monkeypatch.setattr(models.get_model_weights("resnet18").DEFAULT.value, "url", url)
    assert "connection refused" in failure(torchvision_weights("resnet18"))


@pytest.mark.long
@pytest.mark.usefixtures("impatient")
@each_library
def test_a_name_server_that_does_not_answer_is_given_up(
    find: Callable[[], DefaultWeights], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = find()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: time.sleep(30))
    assert "no answer within 1.5 s" in failure(weights)


def test_the_progress_of_a_download_is_printed(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cifar_pipeline.utils.console.STATUS_DELAY", 0)
    timm_weights("resnet18", {}).fetch()
    assert "Downloading resnet18.a1_in1k: 100%" in capsys.readouterr().out.replace(" %", "%")


FETCH = """
from cifar_pipeline.models.default_weights import timm_weights
from cifar_pipeline.utils.errors import UserError
for name in ("resnet18", "resnet34"):
    try:
        print(timm_weights(name, {}).fetch())
    except UserError as error:
        print(error)
"""


@pytest.mark.long
def test_the_variables_of_the_hub_are_respected(server: Server, tmp_path: Path) -> None:
    home = tmp_path / "home"
    variables = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(home)}
    variables.pop("HF_HUB_CACHE", None)

    def fetch(**more: str) -> list[str]:
        process = subprocess.run([sys.executable, "-c", FETCH], env=variables | more, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        return process.stdout.splitlines()

    path, missing = fetch()
    assert Path(path).is_relative_to(home) and Path(path).read_bytes() == CONTENT
    assert "timm/resnet34.a1_in1k has none of the files" in missing
    server.asked.clear()
    path_again, offline = fetch(HF_HUB_OFFLINE="1")
    assert path_again == path and "(HF_HUB_OFFLINE is set)" in offline
    assert server.asked == []


@pytest.mark.parametrize(
    ("find", "message"),
    [
        (lambda: timm_weights("resnet81", {}), "timm has no classification network of this name. Did you mean resnet"),
        (lambda: timm_weights("efficientnet_b6", {}), "timm publishes none for it; choose efficientnet_b5 or"),
        (lambda: timm_weights("resnet18.a9_in1k", {}), "no weights of this name, but resnet18.a1_in1k, "),
        (lambda: torchvision_weights("resnet81"), "torchvision has no classification network of this name."),
    ],
)
def test_a_name_without_weights_suggests_others(find: Callable[[], DefaultWeights], message: str) -> None:
    with pytest.raises(UserError, match=r"^model\.name=") as raised:
        find()
    assert message in str(raised.value)
