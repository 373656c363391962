"""CIFAR-10, "python version": 50,000 training and 10,000 test images of 10 classes, 32x32, colour.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from hashlib import md5
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np

from cifar_pipeline.console import Refusal, doing, warn
from cifar_pipeline.data.archive import members
from cifar_pipeline.data.failures import Unavailable, Unusable
from cifar_pipeline.data.fetch import download, shown
from cifar_pipeline.data.official import Images, Labels, Official
from cifar_pipeline.data.unpickle import unpickle
from cifar_pipeline.files import whole_folder

# The MD5 of each file in the archive, as torchvision publishes them (torchvision/datasets/cifar.py). The files are what
# is verified, so that a repack of the archive and an unpacked folder count as much as the archive itself.
MEMBERS = {
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
# The archive's own, only to save unpacking it twice.
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
FOLDER = "cifar-10-batches-py"

MOST_PER_MEMBER = 64 << 20  # bytes; the largest has 31 MB
MOST_PER_ARCHIVE = 400 << 20  # bytes; the archive has 170 MB, the files without compression 186 MB


class Cifar10:
    """The source of CIFAR-10. `checksums` are the MD5s of the files that make it up.

    `inner` is the folder that the archive holds, `variable` the environment variable that names a place of one's own.
    """

    name = "cifar10"
    title = "CIFAR-10"
    origin = "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; files verified by MD5"
    inner = FOLDER
    variable = "CIFAR10_SOURCE"
    published: Mapping[str, str] = MEMBERS
    archive_md5 = ARCHIVE_MD5
    most_per_member = MOST_PER_MEMBER

    def __init__(self, checksums: Mapping[str, str] = MEMBERS) -> None:
        self.checksums = dict(checksums)

    def fetch(self, folder: Path, mirrors: list[str], timeout: float, cache: Path) -> str:
        """Put the verified files into `folder`, from the first place that has them, and return that place.

        What the environment variable `variable` names (an archive, a folder that is or holds `inner`, or an address)
        goes before `mirrors`. `timeout` is in seconds; `cache` keeps partial downloads.
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
                failures.append((shown(place), str(failure)))
                continue
            for failed, why in failures:
                warn(f"{failed}: {why}.")
            return shown(place)
        raise Unavailable(self.title, failures)

    def is_complete(self, folder: Path) -> bool:
        """Whether `folder` holds the published files, every byte of them, and no others."""
        if not folder.is_dir() or {path.name for path in folder.iterdir()} != set(self.checksums):
            return False
        return all(_md5(folder / name) == checksum for name, checksum in self.checksums.items())

    def read(self, folder: Path) -> Official:
        """Read the files in `folder`: images `[50000, 32, 32, 3]` and `[10000, 32, 32, 3]`, classes by name.

        Raises Refusal where a file is not the published one: nothing is unpickled before its MD5 was checked.
        """
        train = [self._batch(folder, name) for name in sorted(self.checksums) if name.startswith("data_batch")]
        test_images, test_labels = self._batch(folder, "test_batch")
        return Official(
            classes=tuple(name.decode() for name in self._open(folder, "batches.meta")[b"label_names"]),
            train_images=np.concatenate([images for images, _ in train]),
            train_labels=np.concatenate([labels for _, labels in train]),
            test_images=test_images,
            test_labels=test_labels,
        )

    def _batch(self, folder: Path, name: str) -> tuple[Images, Labels]:
        content = self._open(folder, name)
        planes = np.asarray(content[b"data"], np.uint8).reshape(-1, 3, 32, 32)
        return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.asarray(content[b"labels"], np.int64)

    def _open(self, folder: Path, name: str) -> dict[bytes, list[bytes]]:
        path = folder / name
        content = path.read_bytes() if path.is_file() else b""
        if md5(content, usedforsecurity=False).hexdigest() != self.checksums[name]:
            raise Refusal(f"{path} is not the published file; `dvc repro -f download` brings it again.")
        return unpickle(content)

    def _take(self, place: str, folder: Path, timeout: float, cache: Path) -> None:
        """Fill `folder` from one place. Raises Unusable."""
        path = local_path(place)
        downloaded = None
        if path is None:
            path = downloaded = download(place, cache, timeout, self._check, MOST_PER_ARCHIVE)
        doing(f"Verifying the files of {self.title}")
        with whole_folder(folder) as new:
            for name, content in self._verified(self._contents(path)):
                (new / name).write_bytes(content)
        if downloaded:
            downloaded.unlink()  # DVC's cache keeps the files themselves

    def _contents(self, path: Path) -> Iterator[tuple[str, bytes]]:
        """Yield what a folder or an archive holds under the published names."""
        if path.is_dir():
            inner = path / self.inner if (path / self.inner).is_dir() else path
            files = [inner / name for name in self.checksums]
            return ((file.name, file.read_bytes()) for file in files if file.is_file())
        if not path.is_file():
            raise Unusable("there is no such file or folder")
        return members(path, self.checksums, self.most_per_member)

    def _verified(self, contents: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
        """Pass on what has the published MD5. Raises Unusable for what has not, and at the end for what is missing."""
        missing = set(self.checksums)
        for name, content in contents:
            found = md5(content, usedforsecurity=False).hexdigest()
            if found != self.checksums[name]:
                raise Unusable(f"its {name} is not the published file (MD5 {found} for {self.checksums[name]})")
            missing.discard(name)
            yield name, content
        if missing:
            raise Unusable(f"it lacks {', '.join(sorted(missing))}")

    def _check(self, archive: Path) -> None:
        if self.checksums == self.published and _md5(archive) == self.archive_md5:
            return
        for _ in self._verified(self._contents(archive)):
            pass


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
    with path.open("rb") as file:
        digest = md5(usedforsecurity=False)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
