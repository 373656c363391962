"""Download the files of a published dataset: resumed after an interruption, bounded in time, verified by MD5.

The MD5 of each file is checked, not that of the archive, so that a repacked archive and an unpacked folder are accepted
as well. pooch manages the cache, retries interrupted transfers, and renames a file only after the check; the transfer
itself is implemented here, because pooch's restarts from the beginning and has no timeout for a stalled host.
"""

import logging
import os
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import md5
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from cifar_pipeline.data.sources.archive import iter_members
from cifar_pipeline.data.sources.base import AllSourcesFailed, RawDataset, SourceError
from cifar_pipeline.utils.atomic import atomic_replace_dir
from cifar_pipeline.utils.console import progress_bar, status
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.safe_io import irregular_type, open_regular
from cifar_pipeline.utils.text import list_names, redact

log = logging.getLogger(__name__)

DOWNLOAD_CHUNK = 1 << 14  # bytes; an interrupted transfer loses at most the last chunk
WEB_PAGE = "received a web page instead of the file: a login page or an error page"


class DownloadedSource(ABC):
    """Base class of sources with published checksums; a subclass lists them and reads the files.

    `md5s` has the MD5 of each file; `archive_md5` is that of the archive ("" if there is none) and only avoids
    unpacking it twice. `archive_dir` is the folder in the archive. `env_var` names the environment variable for a
    custom path or URL. `checksums` replaces `md5s` in tests.
    """

    name: str
    title: str
    origin: str
    archive_dir: str
    env_var: str
    md5s: ClassVar[Mapping[str, str]]
    archive_md5 = ""
    max_member_bytes: int
    max_archive_bytes: int

    def __init__(self, checksums: Mapping[str, str] | None = None) -> None:
        self.checksums = dict(self.md5s if checksums is None else checksums)

    @abstractmethod
    def read(self, folder: Path) -> RawDataset:
        """Read the files in `folder`. Raises UserError if one does not have the published MD5."""

    def fetch(self, folder: Path, mirrors: list[str], timeout: float, cache: Path) -> str:
        """Put the verified files into `folder` from the first mirror that works, and return that mirror.

        The value of the environment variable `env_var` is tried before `mirrors`: the path of an archive, of a folder
        that is or contains `archive_dir`, the URL of an archive or, with a slash at its end, of a folder with the
        files. `timeout` is in seconds; `cache` keeps partial downloads.
        Raises AllSourcesFailed, with the reason for each mirror, if all of them fail.
        """
        if self.is_complete(folder):
            return f"{folder}, where it was already"
        custom = os.environ.get(self.env_var, "").strip()
        failures: list[tuple[str, str]] = []
        for mirror in [*([custom] if custom else []), *mirrors]:
            try:
                self._fetch_from(mirror, folder, timeout, cache)
            except SourceError as failure:
                failures.append((redact(mirror), str(failure)))
                continue
            for failed, reason in failures:
                log.warning(f"{failed}: {reason}.")
            return redact(mirror)
        raise AllSourcesFailed(self.title, failures)

    def is_complete(self, folder: Path) -> bool:
        """Return whether `folder` contains exactly the published files, with the published MD5s."""
        if not folder.is_dir() or {path.name for path in folder.iterdir()} != set(self.checksums):
            return False
        return all(_md5(folder / name) == checksum for name, checksum in self.checksums.items())

    def content(self, folder: Path, name: str) -> bytes:
        """Read a file in `folder`. Raises UserError if it does not have the published MD5."""
        path = folder / name
        content = path.read_bytes() if path.is_file() else b""
        if md5(content, usedforsecurity=False).hexdigest() != self.checksums[name]:
            raise UserError(f"{path} is not the published file: run `dvc repro -f download` to fetch it again.")
        return content

    def _fetch_from(self, mirror: str, folder: Path, timeout: float, cache: Path) -> None:
        """Fill `folder` from one mirror or path. Raises SourceError."""
        path = local_path(mirror)
        downloaded: list[Path] = []

        def fetch(url: str, check: Callable[[Path], None], max_bytes: int) -> Path:
            downloaded.append(download(url, cache, timeout, check, max_bytes))
            return downloaded[-1]

        if path is not None:
            contents = self._iter_files(path)
        elif urlsplit(mirror).path.endswith("/"):
            files = {
                name: fetch(mirror + name, self._file_checker(name), self.max_member_bytes) for name in self.checksums
            }
            contents = ((name, file.read_bytes()) for name, file in files.items())
        else:
            contents = self._iter_files(fetch(mirror, self._check_archive, self.max_archive_bytes))
        status(f"Verifying the files of {self.title}")
        with atomic_replace_dir(folder) as new:
            for name, content in self._iter_verified(contents):
                (new / name).write_bytes(content)
        for file in downloaded:
            file.unlink()  # DVC's cache keeps the unpacked files

    def _iter_files(self, path: Path) -> Iterator[tuple[str, bytes]]:
        """Yield (name, content) of the published files in a folder or an archive."""
        if path.is_dir():
            folder = path / self.archive_dir if (path / self.archive_dir).is_dir() else path
            files = [folder / name for name in self.checksums]
            return ((file.name, file.read_bytes()) for file in files if file.is_file())
        if not path.exists():
            raise SourceError("no such file or folder")
        if file_type := irregular_type(path.stat().st_mode):
            raise SourceError(f"{file_type}, not a file")
        return iter_members(path, self.checksums, self.max_member_bytes)

    def _iter_verified(self, contents: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
        """Yield `contents`. Raises SourceError for a wrong MD5, and at the end for missing files."""
        missing = set(self.checksums)
        for name, content in contents:
            self._check_md5(name, md5(content, usedforsecurity=False).hexdigest())
            missing.discard(name)
            yield name, content
        if missing:
            raise SourceError(f"{list_names(sorted(missing))} is missing")

    def _check_md5(self, name: str, actual: str) -> None:
        if actual != self.checksums[name]:
            raise SourceError(f"{name} is not the published file (MD5 {actual}, expected {self.checksums[name]})")

    def _check_archive(self, archive: Path) -> None:
        if self.checksums == self.md5s and _md5(archive) == self.archive_md5:
            return
        for _ in self._iter_verified(self._iter_files(archive)):
            pass

    def _file_checker(self, name: str) -> Callable[[Path], None]:
        return lambda file: self._check_md5(name, _md5(file))


def local_path(mirror: str) -> Path | None:
    """Return the path of a local mirror, None for an http(s) URL. Raises SourceError for URLs of other schemes."""
    url = urlsplit(mirror)
    if url.scheme in ("http", "https"):
        return None
    if url.scheme == "file":
        return Path(unquote(url.path))
    if "://" in mirror:
        raise SourceError(f"{url.scheme}:// is not supported, only http, https and file")
    return Path(mirror).expanduser()


def _md5(path: Path) -> str:
    with open_regular(path) as file:
        digest = md5(usedforsecurity=False)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def download(url: str, cache: Path, timeout: float, check: Callable[[Path], None], max_bytes: int) -> Path:
    """Download `url` into the folder `cache` and return the verified file.

    `timeout` is in seconds, for connecting and for each wait for data; `check` raises SourceError for a wrong file. An
    interrupted transfer is kept as `*.partial`, and the next call resumes it.
    Raises SourceError if the host does not respond, sends something else, or sends more than `max_bytes`.
    """
    import pooch
    import requests

    pooch.get_logger().setLevel("CRITICAL")  # failures are logged by `fetch_or_fallback`
    # Redacted, so that a URL with a new signature resumes the download of the old one.
    digest = md5(redact(url).encode(), usedforsecurity=False).hexdigest()
    name = f"{digest[:12]}-{Path(urlsplit(url).path).name or 'download'}"
    downloader = ResumableDownloader(cache / f"{name}.partial", timeout, check, max_bytes)
    pooch_ = pooch.create(cache, base_url="", registry={name: None}, urls={name: url}, retry_if_failed=3)
    try:
        file = Path(pooch_.fetch(name, downloader=downloader))
    except requests.RequestException as error:
        raise SourceError(describe_request_error(error, timeout)) from error
    if not downloader.was_called:  # the file of an earlier call, which may have changed since
        try:
            check(file)
        except SourceError:
            file.unlink()
            return download(url, cache, timeout, check, max_bytes)
    return file


class ResumableDownloader:
    """A downloader for pooch that resumes an interrupted transfer.

    Raises requests.RequestException, after which pooch tries again, if some data was received before the failure;
    SourceError if another attempt would not help.
    """

    def __init__(self, partial: Path, timeout: float, check: Callable[[Path], None], max_bytes: int) -> None:
        self.partial, self.timeout, self.check, self.max_bytes = partial, timeout, check, max_bytes
        self.etag_file = partial.with_name(partial.name + ".etag")
        self.was_called = False

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        import requests

        self.was_called = True
        before = self._size()
        try:
            resumed = self._transfer(url)
        except requests.RequestException as error:
            if self._size() > before:
                raise
            raise SourceError(describe_request_error(error, self.timeout)) from error
        try:
            self.check(self.partial)
        except SourceError as failure:
            self._discard()
            if resumed:  # the two halves may be of different files
                raise requests.ConnectionError(str(failure)) from failure
            raise
        self.partial.replace(output_file)
        self._discard()

    def _transfer(self, url: str) -> bool:
        """Complete the partial file; return whether an earlier transfer was resumed."""
        import requests

        resolve_host(url, self.timeout)
        start = self._size()
        headers = {"Accept-Encoding": "identity"}  # a Range refers to the encoded bytes
        if start:
            headers["Range"] = f"bytes={start}-"
            if self.etag_file.exists():
                headers["If-Range"] = self.etag_file.read_text(encoding="utf-8")
        with requests.get(url, headers=headers, stream=True, timeout=(self.timeout, self.timeout)) as response:
            if response.status_code == 416 and start:  # the file was complete, or has changed
                if response.headers.get("Content-Range") == f"bytes */{start}":
                    return True
                self._discard()
                raise requests.ConnectionError("the file has changed since the download began")
            response.raise_for_status()
            if "html" in response.headers.get("Content-Type", "").lower():
                raise SourceError(WEB_PAGE)
            resumed = response.status_code == 206
            if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                self._discard()
                raise SourceError("the host sent another range of the file than requested")
            start = start if resumed else 0
            length = response.headers.get("Content-Length", "")
            total = start + int(length) if length.isdigit() else None
            if total is not None and total > self.max_bytes:
                raise SourceError(f"the file has {total:,} bytes, far more than expected")
            self._append(response, start, total)
        return resumed

    def _append(self, response: Any, start: int, total: int | None) -> None:
        etag = response.headers.get("ETag") or response.headers.get("Last-Modified")
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        if etag and not etag.startswith("W/"):  # weak ones do not guarantee equal bytes
            self.etag_file.write_text(etag, encoding="utf-8")
        else:
            self.etag_file.unlink(missing_ok=True)
        done = start
        # Only the host, to leave room for the progress bar.
        description = f"Downloading from {urlsplit(response.url).hostname}"
        bar = progress_bar(description, total, is_bytes=True, initial=start)
        with self.partial.open("ab" if start else "wb") as file, bar as advance:
            for chunk in response.iter_content(DOWNLOAD_CHUNK):
                if not done and chunk.lstrip()[:1] == b"<":
                    raise SourceError(WEB_PAGE)
                done += len(chunk)
                if done > self.max_bytes:
                    raise SourceError(f"the file has more than {self.max_bytes:,} bytes, far more than expected")
                file.write(chunk)
                advance(len(chunk))

    def _size(self) -> int:
        return self.partial.stat().st_size if self.partial.exists() else 0

    def _discard(self) -> None:
        self.partial.unlink(missing_ok=True)
        self.etag_file.unlink(missing_ok=True)


def resolve_host(url: str, timeout: float) -> None:
    """Resolve the host's name within `timeout` seconds, which the timeout of requests does not cover.

    Raises SourceError if it cannot be resolved. Does nothing behind a proxy, which resolves names itself.
    """
    from requests.utils import get_environ_proxies, select_proxy

    host = urlsplit(url).hostname
    if host is None or select_proxy(url, get_environ_proxies(url)):
        return
    results: list[object] = []

    def resolve() -> None:
        try:
            results.append(socket.getaddrinfo(host, None))
        except OSError as error:
            results.append(error)

    thread = threading.Thread(target=resolve, daemon=True)
    thread.start()
    thread.join(timeout)
    if not results:
        raise SourceError(f"{host} was not resolved within {timeout:g} s (no network?)")
    if isinstance(results[0], OSError):
        raise SourceError(f"{host} could not be resolved (no network?)")


def describe_request_error(error: Exception, timeout: float) -> str:
    """Describe an error of requests in a few words."""
    import requests

    text = redact(str(error))
    if isinstance(error, requests.HTTPError):
        return f"HTTP error {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {timeout:g} s"
    if isinstance(error, requests.Timeout) or "timed out" in text:
        return f"no data for {timeout:g} s"
    if isinstance(error, requests.exceptions.ProxyError):
        return "blocked by the proxy"
    if isinstance(error, requests.exceptions.SSLError):
        return "the host's certificate is invalid"
    if "refused" in text:
        return "connection refused"
    if "IncompleteRead" in text or isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "transfer interrupted"
    if "Connection aborted" in text:
        return "connection closed by the host"
    return text.splitlines()[0][:200] if text else type(error).__name__
