"""Unpack gzip, bzip2 and xz as a stream, in bounded memory whatever the packed bytes say."""

import bz2
import gzip
import io
import lzma
from typing import BinaryIO, cast

# Of an xz stream's dictionary; `xz -9` takes 64 MiB, a header may ask for 4 GiB.
MOST_MEMORY = 128 << 20
PORTION = 64 << 10


def unpacked(file: BinaryIO) -> BinaryIO:
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
        self.file, self.decoder = file, lzma.LZMADecompressor(memlimit=MOST_MEMORY)
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
                packed, self.pending = self.pending or self.file.read(PORTION), b""
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
            rest = self.file.read(PORTION)
            if not rest:
                return False
            rest = rest.lstrip(b"\0")
        self.decoder = lzma.LZMADecompressor(memlimit=MOST_MEMORY)
        self.pending = rest
        return True
