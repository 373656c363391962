"""CIFAR-10's source: every route gives the same files, and no wrong file is ever taken."""

import gzip
import os
import pickle
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest

from cifar_pipeline.data.sources.base import AllSourcesFailed
from cifar_pipeline.data.sources.cifar import FOLDER, Cifar10, unpickle
from cifar_pipeline.utils.errors import UserError
from helpers.dir_snapshot import content_of
from helpers.tiny_cifar10 import pack

REAL = os.environ.get("CIFAR10_SOURCE")


def fetch(source: Cifar10, tmp_path: Path, *mirrors: str, timeout: float = 5) -> str:
    return source.fetch(tmp_path / "raw" / "cifar10", list(mirrors), timeout, tmp_path / "cache")


def unpacked(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("route", ["web", "archive", "file", "folder", "outer folder", "tar without gzip"])
def test_every_route_gives_the_same_files(route, small, files, archive, server, tmp_path, monkeypatch):
    packed = tmp_path / "with space.tar.gz"
    packed.write_bytes(archive)
    folder = unpacked(tmp_path / "there" / FOLDER, files)
    if route == "tar without gzip":
        packed.write_bytes(gzip.decompress(archive))
    place = {
        "web": server.url,
        "archive": str(packed),
        "file": packed.as_uri(),
        "folder": str(folder),
        "outer folder": str(folder.parent),
        "tar without gzip": str(packed),
    }[route]
    monkeypatch.setenv("CIFAR10_SOURCE", place)
    assert fetch(small, tmp_path, "http://127.0.0.1:9/never") == place
    assert content_of(tmp_path / "raw" / "cifar10") == files
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["cifar10"]
    assert small.is_complete(tmp_path / "raw" / "cifar10")
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())


def test_valid_files_are_kept_and_not_fetched_again(small, files, tmp_path, monkeypatch):
    folder = unpacked(tmp_path / "raw" / "cifar10", files)
    monkeypatch.setenv("CIFAR10_SOURCE", "/nowhere")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert "already" in fetch(small, tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_next_mirror_is_tried_and_the_failure_logged(small, server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CIFAR10_SOURCE", "/nowhere")
    assert fetch(small, tmp_path, server.url) == server.url
    assert "/nowhere: no such file or folder." in capsys.readouterr().err


def test_when_all_mirrors_fail_each_is_named_with_its_reason(small, server, tmp_path, monkeypatch):
    monkeypatch.setenv("CIFAR10_SOURCE", "ftp://old.example/x")
    server.content = b"<html>log in</html>"
    with pytest.raises(AllSourcesFailed) as failure:
        fetch(small, tmp_path, server.url, "http://127.0.0.1:9/x.tar.gz")
    (named, why), (page, html), (closed, refused) = failure.value.reasons
    assert (named, page, closed) == ("ftp://old.example/x", server.url, "http://127.0.0.1:9/x.tar.gz")
    assert "is not supported" in why
    assert "web page" in html
    assert "connection refused" in refused


def damaged(files: dict[str, bytes], how: str) -> dict[str, bytes]:
    if how == "missing":
        return {f"{FOLDER}/{name}": content for name, content in files.items() if name != "data_batch_2"}
    if how == "foreign":
        return {f"{FOLDER}/{name}": content[:-1] + b"!" for name, content in files.items()}
    return {"../cifar10/planted": b"!"} | {f"{FOLDER}/{name}": content for name, content in files.items()}


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("missing", "data_batch_2 is missing"),
        ("foreign", "is not the published file"),
        ("climbing", "a path outside of the archive"),
    ],
)
@pytest.mark.parametrize("route", ["path", "web"])
def test_a_damaged_archive_leaves_nothing(how, why, route, small, files, server, tmp_path, monkeypatch):
    server.content = pack(damaged(files, how))
    packed = tmp_path / "packed.tar.gz"
    packed.write_bytes(server.content)
    monkeypatch.setenv("CIFAR10_SOURCE", str(packed) if route == "path" else server.url)
    with pytest.raises(AllSourcesFailed) as failure:
        fetch(small, tmp_path)
    assert why in failure.value.reasons[0][1]
    assert set(content_of(tmp_path)) == {"packed.tar.gz"}


def test_a_damaged_download_does_not_touch_what_is_there(small, files, server, tmp_path):
    folder = unpacked(tmp_path / "raw" / "cifar10", {"data_batch_1": files["data_batch_1"]})
    server.content = server.content[: len(server.content) // 2]
    with pytest.raises(AllSourcesFailed):
        fetch(small, tmp_path, server.url)
    assert set(content_of(folder)) == {"data_batch_1"}


@pytest.mark.parametrize("change", ["missing", "changed", "more"])
def test_a_missing_changed_or_foreign_file_is_not_taken_for_complete(change, small, files, tmp_path):
    folder = unpacked(tmp_path / "x", files)
    assert small.is_complete(folder)
    if change == "missing":
        (folder / "test_batch").unlink()
    elif change == "changed":
        (folder / "test_batch").write_bytes(files["test_batch"][:-1])
    else:
        (folder / "readme.html").touch()
    assert not small.is_complete(folder)
    assert not small.is_complete(tmp_path / "nowhere")


def test_images_are_read_with_channels_last(small, files, tmp_path):
    official = small.read(unpacked(tmp_path / "x", files))
    assert official.classes == ("cat", "dog")
    assert official.train_images.shape == (20, 32, 32, 3)
    assert official.test_images.shape == (20, 32, 32, 3)
    assert official.train_labels.tolist() == [0, 1] * 10
    row = unpickle(files["data_batch_2"])[b"data"][3]
    for channel in range(3):
        plane = row[1024 * channel : 1024 * (channel + 1)].reshape(32, 32)
        np.testing.assert_array_equal(official.train_images[13, :, :, channel], plane)


def test_a_label_out_of_range_is_refused(small, files, tmp_path):
    content = unpickle(files["data_batch_1"])
    content[b"labels"][7] = 2
    changed = files | {"data_batch_1": pickle.dumps(content, protocol=2)}
    # Its own checksums, as if it had been published so: otherwise the checksum says no first.
    source = Cifar10({name: md5(content).hexdigest() for name, content in changed.items()})
    with pytest.raises(UserError, match="labels range from 0 to 2: a source with 2 classes must number"):
        source.read(unpacked(tmp_path / "x", changed))


def test_nothing_unverified_is_unpickled(small, files, tmp_path):
    folder = unpacked(tmp_path / "x", files | {"data_batch_2": files["data_batch_1"]})
    with pytest.raises(UserError, match="data_batch_2 is not the published file.*dvc repro -f download"):
        small.read(folder)
    (folder / "data_batch_2").unlink()
    with pytest.raises(UserError, match="data_batch_2"):
        small.read(folder)


@pytest.mark.cifar10
@pytest.mark.skipif(not REAL, reason="needs the real CIFAR-10: set CIFAR10_SOURCE to a folder or an archive of it")
def test_the_real_data_is_read_as_published(tmp_path, monkeypatch):
    monkeypatch.setenv("CIFAR10_SOURCE", str(REAL))
    source = Cifar10()
    source.fetch(tmp_path / "cifar10", [], 10, tmp_path / "cache")
    assert source.is_complete(tmp_path / "cifar10")
    official = source.read(tmp_path / "cifar10")
    assert official.train_images.shape == (50000, 32, 32, 3)
    assert official.classes[3] == "cat"
    assert np.bincount(official.train_labels).tolist() == [5000] * 10
    assert np.bincount(official.test_labels).tolist() == [1000] * 10
    np.testing.assert_allclose(official.train_images.mean((0, 1, 2)) / 255, [0.4914, 0.4822, 0.4465], atol=1e-4)
