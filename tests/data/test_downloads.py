"""Downloads against a server that breaks off, hangs, lies or changes its mind."""

import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from cifar_pipeline.data.sources.base import SourceError
from cifar_pipeline.data.sources.download import DOWNLOAD_CHUNK, describe_request_error, download, resolve_host

MOST = 1 << 20


@pytest.fixture
def fetch(server, archive, tmp_path, monkeypatch):
    # pooch waits for a second before it tries again.
    monkeypatch.setattr("pooch.core.time", SimpleNamespace(sleep=lambda seconds: None))

    def check(path: Path) -> None:
        if path.read_bytes() != archive:
            raise SourceError("wrong bytes")

    def fetch(timeout: float = 5, most: int = MOST) -> Path:
        return download(server.url, tmp_path / "cache", timeout, check, most)

    return fetch


def resumed_near_half(asked: str, archive: bytes) -> bool:
    start = int(asked.removeprefix("bytes=").removesuffix("-"))
    return len(archive) // 2 - DOWNLOAD_CHUNK <= start <= len(archive) // 2


def left(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache").iterdir()]


def test_a_download_leaves_nothing_but_the_file(fetch, archive, tmp_path):
    path = fetch()
    assert path.read_bytes() == archive
    assert left(tmp_path) == [path.name]


def test_a_file_already_there_is_checked_and_not_fetched_again(fetch, server, archive):
    path = fetch()
    assert fetch() == path
    assert len(server.asked) == 1
    path.write_bytes(b"changed since")
    assert fetch().read_bytes() == archive


def test_a_download_goes_on_where_it_broke_off(fetch, server, archive):
    server.answer = server.break_off_once
    assert fetch().read_bytes() == archive
    first, second = server.asked
    assert first is None
    assert resumed_near_half(second, archive)


def test_a_download_that_was_given_up_goes_on_in_the_next_call(fetch, server, archive, tmp_path):
    server.answer = server.hang_after_half
    with pytest.raises(SourceError, match="no data for 0.2 s"):
        fetch(timeout=0.2)
    assert all(".partial" in name for name in left(tmp_path))
    server.answer = server.send
    server.asked.clear()
    assert fetch().read_bytes() == archive
    (only,) = server.asked
    assert resumed_near_half(only, archive)


def test_a_download_begins_anew_when_the_file_has_changed_meanwhile(fetch, server, archive):
    server.content = bytes(reversed(archive))
    server.answer = server.hang_after_half
    with pytest.raises(SourceError):
        fetch(timeout=0.2)
    server.content, server.answer = archive, server.send
    assert fetch().read_bytes() == archive


def test_a_download_begins_anew_when_two_halves_do_not_fit(fetch, server, archive, tmp_path):
    server.answer = server.hang_after_half
    with pytest.raises(SourceError):
        fetch(timeout=0.2)
    (partial,) = [path for path in (tmp_path / "cache").iterdir() if path.name.endswith(".partial")]
    partial.write_bytes(b"?" * partial.stat().st_size)
    server.answer = server.send
    assert fetch().read_bytes() == archive


def test_a_complete_partial_file_is_used(fetch, server, archive, tmp_path):
    path = fetch()
    path.rename(path.with_name(path.name + ".partial"))
    assert fetch().read_bytes() == archive
    assert server.asked[-1] == f"bytes={len(archive)}-"


def test_a_host_that_hangs_is_given_up_in_seconds(fetch, server):
    server.answer = server.hang
    begin = time.monotonic()
    with pytest.raises(SourceError, match="no data for 1 s"):
        fetch(timeout=1)
    assert time.monotonic() - begin < 3
    assert len(server.asked) == 1


def test_endless_redirects_are_given_up(fetch, server):
    def elsewhere(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", server.url)
        request.send_header("Content-Length", "0")
        request.end_headers()

    server.answer = elsewhere
    with pytest.raises(SourceError, match="redirects"):
        fetch()


def test_a_slow_host_is_waited_for(fetch, server, archive):
    """What counts is how long it is silent, not how long it takes."""

    def slowly(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(archive)))
        request.end_headers()
        for start in range(0, len(archive), len(archive) // 4):
            time.sleep(0.3)
            request.wfile.write(archive[start : start + len(archive) // 4])

    server.answer = slowly
    assert fetch(timeout=1).read_bytes() == archive


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"<html>log in</html>", "text/html; charset=utf-8"), (b"\n<!DOCTYPE html>", "application/octet-stream")],
)
def test_a_web_page_is_no_archive(fetch, server, tmp_path, content, kind):
    server.content = content
    server.answer = lambda request: server.send(request, kind)
    with pytest.raises(SourceError, match="web page"):
        fetch()
    assert all(".partial" in name for name in left(tmp_path))
    server.content, server.answer = b"", server.send


def test_wrong_content_leaves_no_file(fetch, server, tmp_path):
    server.content = b"\x1f\x8b something else"
    with pytest.raises(SourceError, match="wrong bytes"):
        fetch()
    assert left(tmp_path) == []


def test_absurd_sizes_are_refused_before_and_during_the_transfer(fetch, server):
    with pytest.raises(SourceError, match="far more"):
        fetch(most=100)

    def without_length(request):
        request.send_response(200)
        request.end_headers()
        request.wfile.write(server.content)

    server.answer = without_length
    with pytest.raises(SourceError, match="far more"):
        fetch(most=100)


def test_an_error_of_the_host_is_named(fetch, server, tmp_path):
    server.answer = lambda request: request.send_error(404)
    with pytest.raises(SourceError, match="HTTP error 404 Not Found"):
        fetch()
    with pytest.raises(SourceError, match="connection refused"):
        download("http://127.0.0.1:9/x.tar.gz", tmp_path, 1, lambda _: None, MOST)


def test_a_name_server_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: time.sleep(2))
    with pytest.raises(SourceError, match="within 0.1 s"):
        resolve_host("https://example.org/x", 0.1)


def test_a_failed_download_is_described_in_a_few_words():
    assert describe_request_error(requests.ConnectTimeout(), 10) == "no connection within 10 s"
    assert describe_request_error(requests.exceptions.SSLError("long"), 10) == "the host's certificate is invalid"
