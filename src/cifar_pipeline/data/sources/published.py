"""A data set that stands published as a few files: fetched from the first place that has them, each one verified.

The files are what is verified, each by the MD5 that is published for it, so that a repack of the archive and an
unpacked folder count as much as the archive itself.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import md5
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

from cifar_pipeline.console import Refusal, doing, warn
from cifar_pipeline.data.archive import members
from cifar_pipeline.data.failures import Unavailable, Unusable
from cifar_pipeline.data.fetch import download
from cifar_pipeline.data.official import Official
from cifar_pipeline.files import whole_folder
from cifar_pipeline.redaction import redacted
from cifar_pipeline.regular import irregular_kind, open_regular


class Published(ABC):
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
    def read(self, folder: Path) -> Official:
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
            except Unusable as failure:
                failures.append((redacted(place), str(failure)))
                continue
            for failed, why in failures:
                warn(f"{failed}: {why}.")
            return redacted(place)
        raise Unavailable(self.title, failures)

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
            raise Refusal(f"{path} is not the published file; `dvc repro -f download` brings it again.")
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
        doing(f"Verifying the files of {self.title}")
        with whole_folder(folder) as new:
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
            raise Unusable("there is no such file or folder")
        if kind := irregular_kind(path.stat().st_mode):
            raise Unusable(f"it is {kind}, not a file")
        return members(path, self.checksums, self.most_per_member)

    def _verified(self, contents: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
        """Pass on what has the published MD5. Raises Unusable for what has not, and at the end for what is missing."""
        missing = set(self.checksums)
        for name, content in contents:
            self._require(name, md5(content, usedforsecurity=False).hexdigest())
            missing.discard(name)
            yield name, content
        if missing:
            raise Unusable(f"it lacks {', '.join(sorted(missing))}")

    def _require(self, name: str, found: str) -> None:
        if found != self.checksums[name]:
            raise Unusable(f"its {name} is not the published file (MD5 {found} for {self.checksums[name]})")

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
        raise Unusable(f"addresses of the kind {parts.scheme}:// are not understood, only http, https and file")
    return Path(place).expanduser()


def _md5(path: Path) -> str:
    with open_regular(path) as file:
        digest = md5(usedforsecurity=False)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
