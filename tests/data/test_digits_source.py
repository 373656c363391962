"""The digits: the same bytes everywhere, evenly parted, recognisable."""

import hashlib

import numpy as np
import pytest

from cifar_pipeline.data.sources.digits import Digits, upscale
from cifar_pipeline.utils.errors import UserError
from helpers.dir_snapshot import content_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "digits"
    assert Digits(0.2, 32).fetch(folder, [], 1, folder.parent / "cache") == "scikit-learn"
    return folder


def test_fetch_writes_the_same_bytes_and_keeps_them(folder, tmp_path):
    source = Digits(0.2, 32)
    source.fetch(tmp_path / "again", [], 1, tmp_path)
    assert content_of(tmp_path / "again") == content_of(folder)
    assert source.is_complete(folder)
    assert "already" in source.fetch(folder, [], 1, tmp_path)


def test_splits_are_disjoint_and_even(folder):
    official = Digits(0.2, 32).read(folder)
    assert official.train_images.shape == (1438, 32, 32, 3)
    assert official.test_images.shape == (359, 32, 32, 3)
    shares = np.bincount(official.test_labels) / (
        np.bincount(official.test_labels) + np.bincount(official.train_labels)
    )
    assert np.abs(shares - 0.2).max() < 0.005


def test_the_upscaled_images_never_change(folder):
    official = Digits(0.2, 32).read(folder)
    digest = hashlib.md5(official.train_images.tobytes() + official.test_images.tobytes()).hexdigest()
    assert digest == "966e0c1c955c3e9b64fd161cf24d184c"


def test_upscaling_keeps_every_pixel():
    digit = np.arange(64, dtype=np.uint8).reshape(1, 8, 8) % 17
    large = upscale(digit, 32)
    assert (large[0, ::4, ::4, 0] == np.round(digit[0] * 255.0 / 16)).all()
    assert (large[0, 3::4, 3::4, 2] == large[0, ::4, ::4, 0]).all()
    assert upscale(digit, 28).shape == (1, 28, 28, 3)
    assert upscale(np.array([[[0, 16]]], np.uint8), 2)[0, 0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("content", [b"", b"no array"])
def test_a_damaged_file_is_refused(tmp_path, content):
    source = Digits(0.2, 8)
    source.fetch(tmp_path / "digits", [], 1, tmp_path)
    (tmp_path / "digits" / "images.npy").write_bytes(content)
    assert not source.is_complete(tmp_path / "digits")
    with pytest.raises(UserError, match="dvc repro -f download"):
        source.read(tmp_path / "digits")


def test_a_size_of_zero_is_refused():
    with pytest.raises(UserError, match="size"):
        Digits(0.2, 0)
