"""Downloads that can be trusted to end: resumed where they broke off, given up in seconds, verified before named.

pooch keeps the cache, repeats a transfer that broke off and moves a file to its name only after the check; the transfer
itself is ours, since pooch's own starts from the beginning and waits as long as the host likes.
"""

import socket
import threading
from collections.abc import Callable
from hashlib import md5
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cifar_pipeline.console import progress
from cifar_pipeline.data.failures import Unusable
from cifar_pipeline.redaction import redacted

CHUNK = 1 << 14  # bytes; when a transfer breaks off, what has come of the last chunk is lost


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
    digest = md5(redacted(url).encode(), usedforsecurity=False).hexdigest()
    name = f"{digest[:12]}-{Path(urlsplit(url).path).name or 'download'}"
    transfer = Transfer(cache / f"{name}.partial", timeout, check, most)
    keeper = pooch.create(cache, base_url="", registry={name: None}, urls={name: url}, retry_if_failed=3)
    try:
        found = Path(keeper.fetch(name, downloader=transfer))
    except requests.RequestException as error:
        raise Unusable(reason(error, timeout)) from error
    if not transfer.ran:  # left by an earlier call, perhaps changed since
        try:
            check(found)
        except Unusable:
            found.unlink()
            return download(url, cache, timeout, check, most)
    return found


class Transfer:
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
            raise Unusable(reason(error, self.timeout)) from error
        try:
            self.check(self.partial)
        except Unusable as failure:
            self._forget()
            if resumed:  # the two halves may belong to different files
                raise requests.ConnectionError(str(failure)) from failure
            raise
        self.partial.replace(output_file)
        self._forget()

    def _transfer(self, url: str) -> bool:
        """Fill the partial file up; true where it went on from an earlier part."""
        import requests

        find_host(url, self.timeout)
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
                raise Unusable("a web page came instead of an archive (a login page or an error page?)")
            resumed = response.status_code == 206
            if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                self._forget()
                raise Unusable("the host sent another part of the file than it was asked for")
            start = start if resumed else 0
            length = response.headers.get("Content-Length", "")
            total = start + int(length) if length.isdigit() else None
            if total is not None and total > self.most:
                raise Unusable(f"the file has {total:,} bytes, far more than expected")
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
        bar = progress(what, total, unit_of_bytes=True, begun=start)
        with self.partial.open("ab" if start else "wb") as file, bar as advance:
            for chunk in response.iter_content(CHUNK):
                if not done and chunk.lstrip()[:1] == b"<":
                    raise Unusable("a web page came instead of an archive (a login page or an error page?)")
                done += len(chunk)
                if done > self.most:
                    raise Unusable(f"the file has more than {self.most:,} bytes, far more than expected")
                file.write(chunk)
                advance(len(chunk))

    def _size(self) -> int:
        return self.partial.stat().st_size if self.partial.exists() else 0

    def _forget(self) -> None:
        self.partial.unlink(missing_ok=True)
        self.validator.unlink(missing_ok=True)


def find_host(url: str, timeout: float) -> None:
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
        raise Unusable(f"the name {host} was not found within {timeout:g} s (no network?)")
    if isinstance(found[0], OSError):
        raise Unusable(f"the name {host} is not known here (no network?)")


def reason(error: Exception, timeout: float) -> str:
    """Say in a few words of ours what one of requests' errors means."""
    import requests

    text = redacted(str(error))
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
