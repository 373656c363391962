"""Read named files of a tar archive that nobody vouches for, into memory: nothing is extracted to a path it chooses."""

import lzma
import re
import tarfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from cifar_pipeline.data.failures import Unusable
from cifar_pipeline.data.unpacked import unpacked
from cifar_pipeline.regular import open_regular

PORTION = 1 << 20
# Of an entry: its header, and the extended headers (pax, GNU) before it, which tarfile reads whole into memory.
MOST_HEADER = 64 << 10
MOST_ENTRIES = 100_000
MOST_GLOBAL_VALUES = 100
# tarfile searches a pax header with an expression that takes quadratic time for these (CVE-2024-6232).
ENDLESS_NUMBER = re.compile(rb"[0-9]{100}")
DAMAGE = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError)
# What tarfile raises, apart from its own errors, for extended headers without sense.
SENSELESS = (ValueError, ArithmeticError, LookupError, RecursionError)


def members(archive: Path, names: Collection[str], most: int) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) for each regular file in `archive` that bears one of `names`, in whatever folder it lies.

    `most` is the number of bytes that one file may have. Stops after the last name; other files are passed over.
    Raises Unusable for a damaged archive, a path that climbs out of the archive, a link or device under one of the
    names, a name that stands twice, or sizes beyond any sense.
    """
    wanted = set(names)
    try:
        with open_regular(archive) as file:
            stream = _Forward(unpacked(file))
            for tar, entry in _entries(stream, most, 4 * most * len(names)):
                path = PurePosixPath(entry.name.replace("\\", "/"))
                if path.name not in names or entry.isdir():
                    continue
                if not entry.isreg() or entry.issparse():
                    kind = "a sparse file" if entry.issparse() else "a link or a device"
                    raise Unusable(f"in the archive {entry.name!r} is {kind}, not a file")
                if path.name not in wanted:
                    raise Unusable(f"the archive holds {path.name!r} twice")
                wanted.remove(path.name)
                yield path.name, _content(stream, tar, entry)
                if not wanted:
                    return
    except (*DAMAGE, *SENSELESS) as error:
        raise Unusable(f"this is no whole tar archive ({error})") from error


def _entries(stream: "_Forward", most: int, most_together: int) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield each entry. Raises Unusable for a path that climbs out of the archive, and for too many or too large ones.

    `most` and `most_together` limit the entries' bytes.
    """
    total = 0
    with tarfile.TarFile(fileobj=stream) as tar:  # type: ignore[arg-type]
        for _ in range(MOST_ENTRIES):
            stream.begin_header()
            entry = tar.next()
            if entry is None:
                return
            path = PurePosixPath(entry.name.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts:
                raise Unusable(f"the archive holds {entry.name[:200]!r}, a path that leads out of it")
            total += entry.size
            if not 0 <= entry.size <= most or total > most_together:
                what = f"{entry.name[:200]!r}: {entry.size:,} bytes"
                raise Unusable(f"the archive holds more than was expected ({what})")
            if len(tar.pax_headers) > MOST_GLOBAL_VALUES:
                raise Unusable("the archive's headers are too large")
            yield tar, entry
            tar.members.clear()  # type: ignore[attr-defined]
    raise Unusable(f"the archive holds more than {MOST_ENTRIES:,} files")


def _content(stream: "_Forward", tar: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(entry)
    assert file is not None
    stream.begin_content(entry.size)
    return b"".join(iter(lambda: file.read(PORTION), b""))


class _Forward:
    """An unpacked archive as tarfile reads it: forwards only, and within a limit of bytes.

    tarfile would follow a negative size backwards for ever (CVE-2025-8194). What it skips counts for no limit.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.position, self.left = stream, 0, MOST_HEADER
        self.is_header = True

    def begin_header(self) -> None:
        """Allow what the next entry's headers may have."""
        self.left, self.is_header = MOST_HEADER, True

    def begin_content(self, size: int) -> None:
        """Allow the bytes of an entry."""
        self.left, self.is_header = size, False

    def read(self, size: int = -1) -> bytes:
        """Read that many bytes. Raises Unusable before more than are allowed take memory."""
        if not 0 <= size <= self.left:
            raise Unusable("the archive's headers are too large")
        content = self.stream.read(size)
        self.position += len(content)
        self.left -= len(content)
        if self.is_header and ENDLESS_NUMBER.search(content):
            raise Unusable("the archive's headers make no sense")
        return content

    def tell(self) -> int:
        """Return the position in the unpacked archive."""
        return self.position

    def seek(self, position: int) -> int:
        """Skip to a position further on. Raises Unusable where it is behind."""
        if position < self.position:
            raise Unusable("the archive's headers make no sense")
        while self.position < position:
            skipped = self.stream.read(min(PORTION, position - self.position))
            if not skipped:
                break
            self.position += len(skipped)
        return self.position
