"""Archives that try to write where they should not, or hold too much."""

import tarfile
from pathlib import Path

import pytest
from small_cifar10 import pack

from cifar_pipeline.data.archive import members
from cifar_pipeline.data.failures import Unusable

NAMES = ("a", "b")


def read(tmp_path: Path, content: bytes, most: int = 1000) -> dict[str, bytes]:
    path = tmp_path / "archive"
    path.write_bytes(content)
    return dict(members(path, NAMES, most))


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, "/etc/passwd"
    return entry


def test_the_named_files_are_found_wherever_they_lie(tmp_path):
    content = pack({"./x/a": b"1", "x/readme.html": b"no", "b": b"2"})
    assert read(tmp_path, content) == {"a": b"1", "b": b"2"}


@pytest.mark.parametrize("name", ["../a", "x/../../a", "/a", "..\\a"])
def test_a_path_out_of_the_archive_is_refused(tmp_path, name):
    with pytest.raises(Unusable, match="leads out of it"):
        read(tmp_path, pack({name: b"1"}))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_link_or_a_device_is_refused(tmp_path, kind):
    with pytest.raises(Unusable, match="a link or a device"):
        read(tmp_path, pack({}, link("x/a", kind)))


def test_a_name_that_stands_twice_is_refused(tmp_path):
    with pytest.raises(Unusable, match="twice"):
        read(tmp_path, pack({"x/a": b"1", "y/a": b"2"}))


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path):
    with pytest.raises(Unusable, match="more than was expected"):
        read(tmp_path, pack({"a": bytes(1001)}))
    with pytest.raises(Unusable, match="more than was expected"):
        read(tmp_path, pack({f"other-{index}": bytes(900) for index in range(20)}))


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"\x1f\x8b\x08 cut"])
def test_what_is_no_archive_is_refused(tmp_path, content):
    with pytest.raises(Unusable, match="no whole tar archive"):
        read(tmp_path, content)


def test_a_cut_archive_is_refused(tmp_path, archive):
    with pytest.raises(Unusable, match="no whole tar archive"):
        path = tmp_path / "archive"
        path.write_bytes(archive[: len(archive) // 2])
        list(members(path, ["data_batch_1", "test_batch"], 1 << 20))
