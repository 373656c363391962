"""Read named files of a tar archive that nobody vouches for, into memory: nothing is extracted to a path it chooses.

Unpack gzip, bzip2 and xz as a stream, in bounded memory whatever the packed bytes say.
"""

import bz2
import gzip
import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from cifar_pipeline.data.sources.base import SourceError
from cifar_pipeline.utils.safe_io import open_regular

# Of an xz stream's dictionary; `xz -9` takes 64 MiB, a header may ask for 4 GiB.
MAX_MEMORY_BYTES = 128 << 20
UNPACK_SIZE = 64 << 10


def decompress(file: BinaryIO) -> BinaryIO:
    """Return a stream of what `file`, which can seek, holds packed; of its own bytes where it is not packed.

    Reading raises EOFError, OSError, zlib.error or lzma.LZMAError where the packed bytes are damaged.
    """
    head = file.read(6)
    file.seek(0)
    if head.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb"))
    if head.startswith(b"BZh"):
        return cast(BinaryIO, bz2.BZ2File(file))
    if head.startswith((b"\xfd7zXZ\x00", b"]\x00\x00")):
        return io.BufferedReader(_Xz(file))
    return file


class _Xz(io.RawIOBase):
    """An xz or lzma file, of one or more streams. Python's `LZMAFile` has no limit for the memory."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.decoder = file, lzma.LZMADecompressor(memlimit=MAX_MEMORY_BYTES)
        self.pending = b""

    def readable(self) -> bool:
        """Say that this can be read from."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Unpack into the buffer; returns how many bytes, 0 at the end."""
        while True:
            if self.decoder.eof and not self._begin_next():
                return 0
            packed = b""
            if self.decoder.needs_input:
                packed, self.pending = self.pending or self.file.read(UNPACK_SIZE), b""
                if not packed:
                    raise EOFError("the file ends before the end of the stream")
            content = self.decoder.decompress(packed, len(buffer))
            if content:
                buffer[: len(content)] = content
                return len(content)

    def _begin_next(self) -> bool:
        """Begin with the stream that follows, after padding with zeros; False where none does."""
        rest = self.decoder.unused_data.lstrip(b"\0")
        while not rest:
            rest = self.file.read(UNPACK_SIZE)
            if not rest:
                return False
            rest = rest.lstrip(b"\0")
        self.decoder = lzma.LZMADecompressor(memlimit=MAX_MEMORY_BYTES)
        self.pending = rest
        return True


READ_SIZE = 1 << 20
# Of an entry: its header, and the extended headers (pax, GNU) before it, which tarfile reads whole into memory.
MAX_HEADER_BYTES = 64 << 10
MAX_ENTRIES = 100_000
MAX_GLOBAL_VALUES = 100
# tarfile searches a pax header with an expression that takes quadratic time for these (CVE-2024-6232).
UNBOUNDED_NUMBER = re.compile(rb"[0-9]{100}")
DAMAGE = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError)
# What tarfile raises, apart from its own errors, for extended headers without sense.
INVALID_HEADER = (ValueError, ArithmeticError, LookupError, RecursionError)


def iter_members(archive: Path, names: Collection[str], most: int) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) for each regular file in `archive` that bears one of `names`, in whatever folder it lies.

    `most` is the number of bytes that one file may have. Stops after the last name; other files are passed over.
    Raises Unusable for a damaged archive, a path that climbs out of the archive, a link or device under one of the
    names, a name that stands twice, or sizes beyond any sense.
    """
    wanted = set(names)
    try:
        with open_regular(archive) as file:
            stream = _ForwardReader(decompress(file))
            for tar, entry in _entries(stream, most, 4 * most * len(names)):
                path = PurePosixPath(entry.name.replace("\\", "/"))
                if path.name not in names or entry.isdir():
                    continue
                if not entry.isreg() or entry.issparse():
                    kind = "a sparse file" if entry.issparse() else "a link or a device"
                    raise SourceError(f"in the archive {entry.name!r} is {kind}, not a file")
                if path.name not in wanted:
                    raise SourceError(f"the archive holds {path.name!r} twice")
                wanted.remove(path.name)
                yield path.name, _content(stream, tar, entry)
                if not wanted:
                    return
    except (*DAMAGE, *INVALID_HEADER) as error:
        raise SourceError(f"this is no whole tar archive ({error})") from error


def _entries(
    stream: "_ForwardReader", most: int, most_together: int
) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield each entry. Raises Unusable for a path that climbs out of the archive, and for too many or too large ones.

    `most` and `most_together` limit the entries' bytes.
    """
    total = 0
    with tarfile.TarFile(fileobj=stream) as tar:  # type: ignore[arg-type]
        for _ in range(MAX_ENTRIES):
            stream.begin_header()
            entry = tar.next()
            if entry is None:
                return
            path = PurePosixPath(entry.name.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts:
                raise SourceError(f"the archive holds {entry.name[:200]!r}, a path that leads out of it")
            total += entry.size
            if not 0 <= entry.size <= most or total > most_together:
                what = f"{entry.name[:200]!r}: {entry.size:,} bytes"
                raise SourceError(f"the archive holds more than was expected ({what})")
            if len(tar.pax_headers) > MAX_GLOBAL_VALUES:
                raise SourceError("the archive's headers are too large")
            yield tar, entry
            tar.members.clear()  # type: ignore[attr-defined]
    raise SourceError(f"the archive holds more than {MAX_ENTRIES:,} files")


def _content(stream: "_ForwardReader", tar: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(entry)
    assert file is not None
    stream.begin_content(entry.size)
    return b"".join(iter(lambda: file.read(READ_SIZE), b""))


class _ForwardReader:
    """An unpacked archive as tarfile reads it: forwards only, and within a limit of bytes.

    tarfile would follow a negative size backwards for ever (CVE-2025-8194). What it skips counts for no limit.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.position, self.left = stream, 0, MAX_HEADER_BYTES
        self.is_header = True

    def begin_header(self) -> None:
        """Allow what the next entry's headers may have."""
        self.left, self.is_header = MAX_HEADER_BYTES, True

    def begin_content(self, size: int) -> None:
        """Allow the bytes of an entry."""
        self.left, self.is_header = size, False

    def read(self, size: int = -1) -> bytes:
        """Read that many bytes. Raises Unusable before more than are allowed take memory."""
        if not 0 <= size <= self.left:
            raise SourceError("the archive's headers are too large")
        content = self.stream.read(size)
        self.position += len(content)
        self.left -= len(content)
        if self.is_header and UNBOUNDED_NUMBER.search(content):
            raise SourceError("the archive's headers make no sense")
        return content

    def tell(self) -> int:
        """Return the position in the unpacked archive."""
        return self.position

    def seek(self, position: int) -> int:
        """Skip to a position further on. Raises Unusable where it is behind."""
        if position < self.position:
            raise SourceError("the archive's headers make no sense")
        while self.position < position:
            skipped = self.stream.read(min(READ_SIZE, position - self.position))
            if not skipped:
                break
            self.position += len(skipped)
        return self.position
