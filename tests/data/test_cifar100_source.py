"""CIFAR-100's source: the published layout, verified, by its fine labels."""

import pickle
from hashlib import md5

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from cifar_pipeline.data.sources.base import AllSourcesFailed, fetch_or_fallback
from cifar_pipeline.data.sources.cifar import Cifar100, unpickle
from cifar_pipeline.utils.errors import UserError
from helpers.tiny_cifar10 import pack


def pickled(seed, fine):
    data = np.random.default_rng(seed).integers(0, 256, (len(fine), 3072), np.uint8)
    return pickle.dumps({b"data": data, b"fine_labels": fine, b"coarse_labels": [0] * len(fine)}, protocol=2)


@pytest.fixture
def contents():
    names = {b"fine_label_names": [b"apple", b"bear", b"cup"], b"coarse_label_names": [b"all"]}
    return {
        "meta": pickle.dumps(names, protocol=2),
        "test": pickled(1, [2, 0]),
        "train": pickled(2, [0, 1, 2, 1]),
    }


@pytest.fixture
def source(contents):
    return Cifar100({name: md5(content).hexdigest() for name, content in contents.items()})


@pytest.fixture(autouse=True)
def packed(contents, tmp_path, monkeypatch):
    path = tmp_path / "cifar-100-python.tar.gz"
    path.write_bytes(pack({f"cifar-100-python/{name}": content for name, content in contents.items()}))
    monkeypatch.setenv("CIFAR100_SOURCE", str(path))
    return path


def test_images_are_read_with_channels_last_and_their_fine_labels(source, contents, tmp_path):
    raw = tmp_path / "raw"
    assert fetch_or_fallback(raw, source, None, [], 5, tmp_path / "cache") is source
    official = source.read(raw / "cifar100")
    assert official.classes == ("apple", "bear", "cup")
    assert official.train_labels.tolist() == [0, 1, 2, 1] and official.test_labels.tolist() == [2, 0]
    red, green, blue = np.split(unpickle(contents["train"])[b"data"][3], 3)
    assert (official.train_images[3] == np.stack([red, green, blue], -1).reshape(32, 32, 3)).all()


def test_a_changed_file_is_not_read(source, tmp_path):
    source.fetch(tmp_path / "raw", [], 5, tmp_path / "cache")
    (tmp_path / "raw" / "train").write_bytes(pickled(3, [0]))
    with pytest.raises(UserError, match="train is not the published file"):
        source.read(tmp_path / "raw")


def test_other_files_than_the_published_ones_are_refused(tmp_path):
    published = instantiate(OmegaConf.load("conf/data/source/cifar100.yaml"))
    with pytest.raises(AllSourcesFailed) as failure:
        published.fetch(tmp_path / "raw", [], 5, tmp_path / "cache")
    assert "is not the published file" in failure.value.reasons[0][1]
    with pytest.raises(UserError, match="set CIFAR100_SOURCE to an"):
        fetch_or_fallback(tmp_path / "data", published, None, [], 5, tmp_path / "cache")
