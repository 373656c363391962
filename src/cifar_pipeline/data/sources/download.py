"""A data set that stands published as a few files: fetched from the first place that has them, each one verified.

The files are what is verified, each by the MD5 that is published for it, so that a repack of the archive and an
unpacked folder count as much as the archive itself.

Downloads that can be trusted to end: resumed where they broke off, given up in seconds, verified before named.

pooch keeps the cache, repeats a transfer that broke off and moves a file to its name only after the check; the transfer
itself is ours, since pooch's own starts from the beginning and waits as long as the host likes.
"""

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
from cifar_pipeline.utils.console import progress_bar, status, warning
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.safe_io import irregular_type, open_regular
from cifar_pipeline.utils.text import redact

DOWNLOAD_CHUNK = 1 << 14  # bytes; when a transfer breaks off, what has come of the last chunk is lost


def download(url: str, cache: Path, timeout: float, check: Callable[[Path], None], most: int) -> Path:
    """Bring `url` into the folder `cache` and return the file, verified.

    `timeout` is in seconds, once for connecting and once for silence; `check` raises Unusable for a wrong file; `most`
    is the number of bytes beyond which it cannot be the right one. What came before a transfer broke off is kept as
    `*.partial` and the next call goes on from there.
    Raises Unusable when the host does not answer, or what it sends is not what was asked for.
    """
    import pooch
    import requests

    pooch.get_logger().setLevel("CRITICAL")  # the project speaks for itself
    # Without secrets, so that an address that was signed anew goes on with what the old one brought.
    digest = md5(redact(url).encode(), usedforsecurity=False).hexdigest()
    name = f"{digest[:12]}-{Path(urlsplit(url).path).name or 'download'}"
    transfer = ResumableDownloader(cache / f"{name}.partial", timeout, check, most)
    keeper = pooch.create(cache, base_url="", registry={name: None}, urls={name: url}, retry_if_failed=3)
    try:
        found = Path(keeper.fetch(name, downloader=transfer))
    except requests.RequestException as error:
        raise SourceError(describe_request_error(error, timeout)) from error
    if not transfer.ran:  # left by an earlier call, perhaps changed since
        try:
            check(found)
        except SourceError:
            found.unlink()
            return download(url, cache, timeout, check, most)
    return found


class ResumableDownloader:
    """A downloader for pooch that goes on where the last transfer broke off.

    Raises requests.RequestException where another attempt may help (something came, then it broke off), which is what
    pooch takes for a reason to try again; Unusable where it would not.
    """

    def __init__(self, partial: Path, timeout: float, check: Callable[[Path], None], most: int) -> None:
        self.partial, self.timeout, self.check, self.most = partial, timeout, check, most
        self.validator = partial.with_name(partial.name + ".etag")
        self.ran = False

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        import requests

        self.ran = True
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
            self._forget()
            if resumed:  # the two halves may belong to different files
                raise requests.ConnectionError(str(failure)) from failure
            raise
        self.partial.replace(output_file)
        self._forget()

    def _transfer(self, url: str) -> bool:
        """Fill the partial file up; true where it went on from an earlier part."""
        import requests

        resolve_host(url, self.timeout)
        start = self._size()
        headers = {"Accept-Encoding": "identity"}  # a Range counts the bytes that are sent
        if start:
            headers["Range"] = f"bytes={start}-"
            if self.validator.exists():
                headers["If-Range"] = self.validator.read_text()
        with requests.get(url, headers=headers, stream=True, timeout=(self.timeout, self.timeout)) as response:
            if response.status_code == 416 and start:  # nothing is left to send, or the file has changed
                if response.headers.get("Content-Range") == f"bytes */{start}":
                    return True
                self._forget()
                raise requests.ConnectionError("the file at this address has changed since the download began")
            response.raise_for_status()
            if "html" in response.headers.get("Content-Type", "").lower():
                raise SourceError("a web page came instead of an archive (a login page or an error page?)")
            resumed = response.status_code == 206
            if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                self._forget()
                raise SourceError("the host sent another part of the file than it was asked for")
            start = start if resumed else 0
            length = response.headers.get("Content-Length", "")
            total = start + int(length) if length.isdigit() else None
            if total is not None and total > self.most:
                raise SourceError(f"the file has {total:,} bytes, far more than expected")
            self._append(response, start, total)
        return resumed

    def _append(self, response: Any, start: int, total: int | None) -> None:
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        if validator and not validator.startswith("W/"):  # weak ones promise no equal bytes
            self.validator.write_text(validator)
        else:
            self.validator.unlink(missing_ok=True)
        done = start
        # The host alone, so that a bar has its place beside it.
        what = f"Downloading from {urlsplit(response.url).hostname}"
        bar = progress_bar(what, total, is_bytes=True, initial=start)
        with self.partial.open("ab" if start else "wb") as file, bar as advance:
            for chunk in response.iter_content(DOWNLOAD_CHUNK):
                if not done and chunk.lstrip()[:1] == b"<":
                    raise SourceError("a web page came instead of an archive (a login page or an error page?)")
                done += len(chunk)
                if done > self.most:
                    raise SourceError(f"the file has more than {self.most:,} bytes, far more than expected")
                file.write(chunk)
                advance(len(chunk))

    def _size(self) -> int:
        return self.partial.stat().st_size if self.partial.exists() else 0

    def _forget(self) -> None:
        self.partial.unlink(missing_ok=True)
        self.validator.unlink(missing_ok=True)


def resolve_host(url: str, timeout: float) -> None:
    """Look the host's name up, in no more than `timeout` seconds: requests' own timeout begins after that.

    Raises Unusable when there is no answer. Behind a proxy nothing is looked up, the proxy does that.
    """
    from requests.utils import get_environ_proxies, select_proxy

    host = urlsplit(url).hostname
    if host is None or select_proxy(url, get_environ_proxies(url)):
        return
    found: list[object] = []

    def look_up() -> None:
        try:
            found.append(socket.getaddrinfo(host, None))
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(timeout)
    if not found:
        raise SourceError(f"the name {host} was not found within {timeout:g} s (no network?)")
    if isinstance(found[0], OSError):
        raise SourceError(f"the name {host} is not known here (no network?)")


def describe_request_error(error: Exception, timeout: float) -> str:
    """Say in a few words of ours what one of requests' errors means."""
    import requests

    text = redact(str(error))
    if isinstance(error, requests.HTTPError):
        return f"the host answers {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {timeout:g} s"
    if isinstance(error, requests.Timeout) or "timed out" in text:
        return f"the host was silent for {timeout:g} s"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy does not let it through"
    if isinstance(error, requests.exceptions.SSLError):
        return "the host's certificate was not accepted"
    if "refused" in text:
        return "the host refuses the connection"
    if "IncompleteRead" in text or isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the transfer broke off"
    if "Connection aborted" in text:
        return "the host closed the connection"
    return text.splitlines()[0][:200] if text else type(error).__name__


class DownloadedSource(ABC):
    """A source whose files have published checksums; a subclass says which, and how they are read.

    `published` has the MD5 of each file, `archive_md5` that of the archive ("": there is none), only to save unpacking
    it twice. `inner` is the folder that the archive holds, `variable` the environment variable that names a place of
    one's own. `checksums` are those that files are verified against: the published ones, but for tests.
    """

    name: str
    title: str
    origin: str
    inner: str
    variable: str
    published: ClassVar[Mapping[str, str]]
    archive_md5 = ""
    most_per_member: int  # bytes
    most_per_archive: int  # bytes

    def __init__(self, checksums: Mapping[str, str] | None = None) -> None:
        self.checksums = dict(self.published if checksums is None else checksums)

    @abstractmethod
    def read(self, folder: Path) -> RawDataset:
        """Read the files in `folder`. Raises Refusal where one is not the published one."""

    def fetch(self, folder: Path, mirrors: list[str], timeout: float, cache: Path) -> str:
        """Put the verified files into `folder`, from the first place that has them, and return that place.

        What the environment variable `variable` names goes before `mirrors`: an archive, a folder that is or holds
        `inner`, the address of an archive or, with a slash at its end, of a folder that has the files. `timeout` is in
        seconds; `cache` keeps partial downloads.
        Raises Unavailable, with each place's failure, when none has them.
        """
        if self.is_complete(folder):
            return f"{folder}, where it was already"
        named = os.environ.get(self.variable, "").strip()
        failures: list[tuple[str, str]] = []
        for place in [*([named] if named else []), *mirrors]:
            try:
                self._take(place, folder, timeout, cache)
            except SourceError as failure:
                failures.append((redact(place), str(failure)))
                continue
            for failed, why in failures:
                warning(f"{failed}: {why}.")
            return redact(place)
        raise AllSourcesFailed(self.title, failures)

    def is_complete(self, folder: Path) -> bool:
        """Whether `folder` holds the published files, every byte of them, and no others."""
        if not folder.is_dir() or {path.name for path in folder.iterdir()} != set(self.checksums):
            return False
        return all(_md5(folder / name) == checksum for name, checksum in self.checksums.items())

    def content(self, folder: Path, name: str) -> bytes:
        """The bytes of a file in `folder`. Raises Refusal where they are not the published ones."""
        path = folder / name
        content = path.read_bytes() if path.is_file() else b""
        if md5(content, usedforsecurity=False).hexdigest() != self.checksums[name]:
            raise UserError(f"{path} is not the published file; `dvc repro -f download` brings it again.")
        return content

    def _take(self, place: str, folder: Path, timeout: float, cache: Path) -> None:
        """Fill `folder` from one place. Raises Unusable."""
        path = local_path(place)
        downloaded: list[Path] = []

        def fetched(url: str, check: Callable[[Path], None], most: int) -> Path:
            downloaded.append(download(url, cache, timeout, check, most))
            return downloaded[-1]

        if path is not None:
            contents = self._contents(path)
        elif urlsplit(place).path.endswith("/"):
            files = {name: fetched(place + name, self._checked(name), self.most_per_member) for name in self.checksums}
            contents = ((name, file.read_bytes()) for name, file in files.items())
        else:
            contents = self._contents(fetched(place, self._check, self.most_per_archive))
        status(f"Verifying the files of {self.title}")
        with atomic_replace_dir(folder) as new:
            for name, content in self._verified(contents):
                (new / name).write_bytes(content)
        for file in downloaded:
            file.unlink()  # DVC's cache keeps the files themselves

    def _contents(self, path: Path) -> Iterator[tuple[str, bytes]]:
        """Yield what a folder or an archive holds under the published names."""
        if path.is_dir():
            inner = path / self.inner if (path / self.inner).is_dir() else path
            files = [inner / name for name in self.checksums]
            return ((file.name, file.read_bytes()) for file in files if file.is_file())
        if not path.exists():
            raise SourceError("there is no such file or folder")
        if kind := irregular_type(path.stat().st_mode):
            raise SourceError(f"it is {kind}, not a file")
        return iter_members(path, self.checksums, self.most_per_member)

    def _verified(self, contents: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
        """Pass on what has the published MD5. Raises Unusable for what has not, and at the end for what is missing."""
        missing = set(self.checksums)
        for name, content in contents:
            self._require(name, md5(content, usedforsecurity=False).hexdigest())
            missing.discard(name)
            yield name, content
        if missing:
            raise SourceError(f"it lacks {', '.join(sorted(missing))}")

    def _require(self, name: str, found: str) -> None:
        if found != self.checksums[name]:
            raise SourceError(f"its {name} is not the published file (MD5 {found} for {self.checksums[name]})")

    def _check(self, archive: Path) -> None:
        if self.checksums == self.published and _md5(archive) == self.archive_md5:
            return
        for _ in self._verified(self._contents(archive)):
            pass

    def _checked(self, name: str) -> Callable[[Path], None]:
        return lambda file: self._require(name, _md5(file))


def local_path(place: str) -> Path | None:
    """The path that `place` names, None for a web address. Raises Unusable for any other kind of address."""
    parts = urlsplit(place)
    if parts.scheme in ("http", "https"):
        return None
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if "://" in place:
        raise SourceError(f"addresses of the kind {parts.scheme}:// are not understood, only http, https and file")
    return Path(place).expanduser()


def _md5(path: Path) -> str:
    with open_regular(path) as file:
        digest = md5(usedforsecurity=False)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
