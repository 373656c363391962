"""Archives that try to write where they should not, or hold too much."""

import bz2
import gzip
import io
import lzma
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cifar_pipeline.data.sources.archive import iter_members
from cifar_pipeline.data.sources.base import SourceError
from cifar_pipeline.data.sources.digits import Digits
from helpers.tiny_cifar10 import pack

NAMES = ("a", "b")


def read(tmp_path: Path, content: bytes, most: int = 1000) -> dict[str, bytes]:
    path = tmp_path / "archive"
    path.write_bytes(content)
    return dict(iter_members(path, NAMES, most))


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, "/etc/passwd"
    return entry


def test_the_named_files_are_found_wherever_they_lie(tmp_path):
    content = pack({"./x/a": b"1", "x/readme.html": b"no", "b": b"2"})
    assert read(tmp_path, content) == {"a": b"1", "b": b"2"}


@pytest.mark.parametrize("name", ["../a", "x/../../a", "/a", "..\\a"])
def test_a_path_out_of_the_archive_is_refused(tmp_path, name):
    with pytest.raises(SourceError, match="a path outside of the archive"):
        read(tmp_path, pack({name: b"1"}))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_link_or_a_device_is_refused(tmp_path, kind):
    with pytest.raises(SourceError, match="a link or a device"):
        read(tmp_path, pack({}, link("x/a", kind)))


def test_a_name_that_occurs_twice_is_refused(tmp_path):
    with pytest.raises(SourceError, match="twice"):
        read(tmp_path, pack({"x/a": b"1", "y/a": b"2"}))


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path):
    with pytest.raises(SourceError, match="is larger than expected"):
        read(tmp_path, pack({"a": bytes(1001)}))
    with pytest.raises(SourceError, match="is larger than expected"):
        read(tmp_path, pack({f"other-{index}": bytes(900) for index in range(20)}))


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"\x1f\x8b\x08 cut"])
def test_content_that_is_not_an_archive_is_refused(tmp_path, content):
    with pytest.raises(SourceError, match="not a complete tar archive"):
        read(tmp_path, content)


def test_a_cut_archive_is_refused(tmp_path, archive):
    with pytest.raises(SourceError, match="not a complete tar archive"):
        path = tmp_path / "archive"
        path.write_bytes(archive[: len(archive) // 2])
        list(iter_members(path, ["data_batch_1", "test_batch"], 1 << 20))


def header(name: str, size: int, kind: bytes) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


def block(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % tarfile.BLOCKSIZE)


def record(key: str, value: str) -> bytes:
    """A record of a pax header."""
    text = f" {key}={value}\n".encode()
    size = len(text) + len(str(len(text)))
    return b"%d%b" % (len(text) + len(str(size)), text)


def pax(content: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return header("h", len(content), kind) + block(content)


def peak(action: Callable[[], object]) -> int:
    """How many bytes Python held at most while this ran."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_header_of_64_mb_is_refused_before_it_takes_memory(tmp_path, kind):
    size = 64 << 20
    # A pax header begins with its records; what follows them may be anything.
    content = gzip.compress(header("h", size, kind) + record("comment", "x") + bytes(size), 1)
    assert len(content) < 1 << 20

    def refused() -> None:
        with pytest.raises(SourceError, match="headers are too large"):
            read(tmp_path, content)

    assert peak(refused) < 16 << 20


SENSELESS = {
    "a chain of headers": pax(record("comment", "x")) * 1000,
    "digits that are searched for ever": pax(b"1" * 60_000),
    "a size below zero": header("x", -2048, tarfile.REGTYPE),
    "a map of a sparse file": pax(record("GNU.sparse.map", "no,numbers") + record("GNU.sparse.size", "x")),
    "a sparse file": pax(record("GNU.sparse.map", "0,1") + record("GNU.sparse.size", "900")),
    "a version of sparse files": pax(record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0")),
    "values for all entries": b"".join(
        pax(record(f"key{i}", "x"), tarfile.XGLTYPE) + header("x", 0, b"0") for i in range(200)
    ),
}


@pytest.mark.parametrize("case", SENSELESS)
def test_invalid_headers_are_refused_at_once(tmp_path, case):
    content = SENSELESS[case] + header("a", 1, tarfile.REGTYPE) + block(b"1") * 3
    with pytest.raises(SourceError):
        read(tmp_path, content)


def test_entries_without_end_are_refused_and_take_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("cifar_pipeline.data.sources.archive.MAX_ENTRIES", 10_000)
    content = gzip.compress(header("x", 0, tarfile.REGTYPE) * 10_001, 1)

    def refused() -> None:
        with pytest.raises(SourceError, match="more than 10,000 files"):
            read(tmp_path, content)

    assert peak(refused) < 2 << 20


def test_an_xz_archive_that_asks_for_a_dictionary_of_a_gigabyte_is_refused(tmp_path):
    packed = bytearray(lzma.compress(gzip.decompress(pack({"a": b"1"})), lzma.FORMAT_ALONE))
    packed[1:5] = (1 << 30).to_bytes(4, "little")  # where this format keeps the dictionary's size
    with pytest.raises(SourceError, match="[Mm]emory"):
        read(tmp_path, bytes(packed))


def alone(content: bytes) -> bytes:
    """The older form of xz."""
    return lzma.compress(content, lzma.FORMAT_ALONE)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress, alone])
def test_every_compression_is_read_in_one_or_several_streams(tmp_path, compress):
    contents = {"x/a": bytes(range(256)) * 300, "b": b"2"}
    plain = gzip.decompress(pack(contents))
    assert read(tmp_path, compress(plain), 1 << 20) == {"a": contents["x/a"], "b": b"2"}
    if compress not in (bytes, alone):
        halves = compress(plain[:5000]) + compress(plain[5000:])
        assert read(tmp_path, halves, 1 << 20) == {"a": contents["x/a"], "b": b"2"}
        with pytest.raises(SourceError, match="not a complete tar archive"):
            read(tmp_path, compress(plain)[:-40], 1 << 20)


def test_pax_headers_of_a_repack_are_read(tmp_path):
    name = "ein sehr langer Ordner/" * 20 + "a"
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz", format=kind) as tar:
            entry = tarfile.TarInfo(name)
            entry.size, entry.pax_headers = 1, {"LIBARCHIVE.xattr.com.apple.quarantine": "x" * 5000}
            tar.addfile(entry, io.BytesIO(b"1"))
        assert read(tmp_path, packed.getvalue()) == {"a": b"1"}


def test_an_array_whose_header_claims_a_terabyte_is_not_complete(tmp_path):
    source = Digits(test_fraction=0.2, size=32)
    source.fetch(tmp_path / "digits", [], 1, tmp_path)
    assert source.is_complete(tmp_path / "digits")
    with (tmp_path / "digits" / "images.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40,)})
    assert not source.is_complete(tmp_path / "digits")
