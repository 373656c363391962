"""Read files from untrusted tar archives (plain, gzip, bzip2 or xz) in bounded memory, without extracting to disk."""

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

# For the dictionary of an xz stream: `xz -9` uses 64 MiB, but a header may request 4 GiB.
MAX_MEMORY_BYTES = 128 << 20
DECOMPRESS_SIZE = 64 << 10
READ_SIZE = 1 << 20
# The header of an entry with the extended headers (pax, GNU) before it, which tarfile reads into memory at once.
MAX_HEADER_BYTES = 64 << 10
MAX_ENTRIES = 100_000
MAX_GLOBAL_VALUES = 100
# tarfile searches pax headers with a regular expression that takes quadratic time for long numbers (CVE-2024-6232).
UNBOUNDED_NUMBER = re.compile(rb"[0-9]{100}")
CORRUPT_ARCHIVE = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError)
# What tarfile raises, apart from its own errors, for invalid extended headers.
INVALID_HEADER = (ValueError, ArithmeticError, LookupError, RecursionError)


def iter_members(archive: Path, names: Collection[str], max_bytes: int) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) for each regular file in `archive` with one of `names`, in any folder.

    A file may have up to `max_bytes` bytes. Stops after the last of `names`; other files are skipped.
    Raises SourceError for a corrupt archive, a path outside of the archive, a link or device with one of the names, a
    name that occurs twice, or excessive sizes.
    """
    missing = set(names)
    try:
        with open_regular(archive) as file:
            stream = _ForwardReader(decompress(file))
            for tar, entry in _iter_entries(stream, max_bytes, 4 * max_bytes * len(names)):
                path = PurePosixPath(entry.name.replace("\\", "/"))
                if path.name not in names or entry.isdir():
                    continue
                if not entry.isreg() or entry.issparse():
                    entry_type = "a sparse file" if entry.issparse() else "a link or a device"
                    raise SourceError(f"{entry.name!r} in the archive is {entry_type}, not a regular file")
                if path.name not in missing:
                    raise SourceError(f"the archive contains {path.name!r} twice")
                missing.remove(path.name)
                yield path.name, _read_content(stream, tar, entry)
                if not missing:
                    return
    except (*CORRUPT_ARCHIVE, *INVALID_HEADER) as error:
        raise SourceError(f"not a complete tar archive ({error})") from error


def _iter_entries(
    stream: "_ForwardReader", max_bytes: int, max_total_bytes: int
) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield each entry. Raises SourceError for a path outside of the archive, and for too many or too large entries."""
    total = 0
    with tarfile.TarFile(fileobj=stream) as tar:  # type: ignore[arg-type]
        for _ in range(MAX_ENTRIES):
            stream.begin_header()
            entry = tar.next()
            if entry is None:
                return
            path = PurePosixPath(entry.name.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts:
                raise SourceError(f"the archive contains {entry.name[:200]!r}, a path outside of the archive")
            total += entry.size
            if not 0 <= entry.size <= max_bytes or total > max_total_bytes:
                raise SourceError(
                    f"the archive is larger than expected ({entry.name[:200]!r} has {entry.size:,} bytes)"
                )
            if len(tar.pax_headers) > MAX_GLOBAL_VALUES:
                raise SourceError("the archive's headers are too large")
            yield tar, entry
            tar.members.clear()  # type: ignore[attr-defined]
    raise SourceError(f"the archive contains more than {MAX_ENTRIES:,} files")


def _read_content(stream: "_ForwardReader", tar: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(entry)
    assert file is not None
    stream.begin_content(entry.size)
    return b"".join(iter(lambda: file.read(READ_SIZE), b""))


class _ForwardReader:
    """A decompressed archive as a file object for tarfile, limited to forward seeks and a number of bytes.

    tarfile would follow a negative size backward forever (CVE-2025-8194). Skipped bytes are not counted.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.position, self.remaining = stream, 0, MAX_HEADER_BYTES
        self.is_header = True

    def begin_header(self) -> None:
        """Set the limit for the headers of the next entry."""
        self.remaining, self.is_header = MAX_HEADER_BYTES, True

    def begin_content(self, size: int) -> None:
        """Set the limit for the content of an entry."""
        self.remaining, self.is_header = size, False

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes. Raises SourceError if that exceeds the limit."""
        if not 0 <= size <= self.remaining:
            raise SourceError("the archive's headers are too large")
        content = self.stream.read(size)
        self.position += len(content)
        self.remaining -= len(content)
        if self.is_header and UNBOUNDED_NUMBER.search(content):
            raise SourceError("the archive's headers are invalid")
        return content

    def tell(self) -> int:
        """Return the position in the decompressed archive."""
        return self.position

    def seek(self, position: int) -> int:
        """Skip forward to a position. Raises SourceError if it is behind the current one."""
        if position < self.position:
            raise SourceError("the archive's headers are invalid")
        while self.position < position:
            skipped = self.stream.read(min(READ_SIZE, position - self.position))
            if not skipped:
                break
            self.position += len(skipped)
        return self.position


def decompress(file: BinaryIO) -> BinaryIO:
    """Return a stream of the decompressed content of `file`, which must be seekable; `file` if it is not compressed.

    Reading from it raises EOFError, OSError, zlib.error or lzma.LZMAError if the content is corrupt.
    """
    head = file.read(6)
    file.seek(0)
    if head.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb"))
    if head.startswith(b"BZh"):
        return cast(BinaryIO, bz2.BZ2File(file))
    if head.startswith((b"\xfd7zXZ\x00", b"]\x00\x00")):
        return io.BufferedReader(_XzReader(file))
    return file


class _XzReader(io.RawIOBase):
    """Read an xz or lzma file of one or more streams in limited memory, which Python's `LZMAFile` cannot do."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.decoder = file, lzma.LZMADecompressor(memlimit=MAX_MEMORY_BYTES)
        self.pending = b""

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Decompress into the buffer and return the number of bytes, 0 at the end."""
        while True:
            if self.decoder.eof and not self._begin_next_stream():
                return 0
            compressed = b""
            if self.decoder.needs_input:
                compressed, self.pending = self.pending or self.file.read(DECOMPRESS_SIZE), b""
                if not compressed:
                    raise EOFError("the file ends before the end of the stream")
            content = self.decoder.decompress(compressed, len(buffer))
            if content:
                buffer[: len(content)] = content
                return len(content)

    def _begin_next_stream(self) -> bool:
        """Start decoding the next stream, after zero padding; return False at the end of the file."""
        rest = self.decoder.unused_data.lstrip(b"\0")
        while not rest:
            rest = self.file.read(DECOMPRESS_SIZE)
            if not rest:
                return False
            rest = rest.lstrip(b"\0")
        self.decoder = lzma.LZMADecompressor(memlimit=MAX_MEMORY_BYTES)
        self.pending = rest
        return True
