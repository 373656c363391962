"""Fashion-MNIST's source: four files in a folder of the web, verified one by one, read within their bounds."""

import gzip
from hashlib import md5

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from cifar_pipeline.data.sources.base import AllSourcesFailed, fetch_or_fallback
from cifar_pipeline.data.sources.fashion_mnist import FashionMnist, idx_array
from cifar_pipeline.utils.errors import UserError
from helpers.tiny_cifar10 import pack


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)


@pytest.fixture
def contents(pictures):
    return {
        "train-images-idx3-ubyte.gz": gzip.compress(idx(pictures[:4])),
        "train-labels-idx1-ubyte.gz": gzip.compress(idx(np.array([9, 0, 3, 3], np.uint8))),
        "t10k-images-idx3-ubyte.gz": gzip.compress(idx(pictures[4:])),
        "t10k-labels-idx1-ubyte.gz": gzip.compress(idx(np.array([1, 2], np.uint8))),
    }


def source_of(contents):
    return FashionMnist({name: md5(content).hexdigest() for name, content in contents.items()})


@pytest.fixture
def site(server, contents):
    """The address of a server that has the four files in the folder /fashion/, and nothing else."""

    def answer(request):
        folder, _, name = request.path.rpartition("/")
        if folder == "/fashion" and name in contents:
            server.content = contents[name]
            server.send(request)
        else:
            request.send_error(404)

    server.answer = answer
    return server.url.rpartition("/")[0]


@pytest.fixture(autouse=True)
def no_custom_source(monkeypatch):
    monkeypatch.delenv("FASHION_MNIST_SOURCE", raising=False)


def test_the_four_files_come_from_a_folder_of_the_web(contents, pictures, site, tmp_path):
    source, raw = source_of(contents), tmp_path / "raw"
    assert fetch_or_fallback(raw, source, None, [f"{site}/empty/", f"{site}/fashion/"], 5, tmp_path / "cache") is source
    official = source.read(raw / "fashion_mnist")
    assert official.classes[9] == "Ankle boot"
    assert (official.train_images == pictures[:4, :, :, None]).all()
    assert (official.test_images == pictures[4:, :, :, None]).all()
    assert official.train_labels.tolist() == [9, 0, 3, 3] and official.test_labels.tolist() == [1, 2]
    assert not list((tmp_path / "cache").iterdir())


def test_a_local_folder_and_a_local_archive_are_accepted(contents, tmp_path, monkeypatch):
    folder, archive = tmp_path / "mine", tmp_path / "mine.tar.gz"
    (folder / "fashion").mkdir(parents=True)
    for name, content in contents.items():
        (folder / "fashion" / name).write_bytes(content)
    archive.write_bytes(pack({f"fashion/{name}": content for name, content in contents.items()}))
    for number, place in enumerate((folder, folder / "fashion", archive)):
        monkeypatch.setenv("FASHION_MNIST_SOURCE", str(place))
        new = tmp_path / f"raw{number}"
        assert source_of(contents).fetch(new, [], 5, tmp_path / "cache") == str(place)
        assert source_of(contents).is_complete(new)


def test_other_files_than_the_published_ones_are_refused(site, tmp_path):
    published = instantiate(OmegaConf.load("conf/data/source/fashion_mnist.yaml"))
    with pytest.raises(AllSourcesFailed) as failure:
        published.fetch(tmp_path / "raw", [f"{site}/fashion/"], 5, tmp_path / "cache")
    assert "train-images-idx3-ubyte.gz is not the published file" in failure.value.reasons[0][1]
    with pytest.raises(UserError, match="set FASHION_MNIST_SOURCE to an"):
        fetch_or_fallback(tmp_path / "data", published, None, [], 5, tmp_path / "cache")


def test_a_changed_file_is_not_read(contents, tmp_path):
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content + b"more")
    with pytest.raises(UserError, match="is not the published file"):
        source_of(contents).read(tmp_path)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (b"no gzip at all", "is not an array"),
        (gzip.compress(b"\0\0\x08\3" + b"\xff" * 12), "but 0 follow"),
        (gzip.compress(idx(np.zeros((4, 28, 28), np.uint8)))[:40], "is not an array"),
        (gzip.compress(idx(np.zeros(4, np.uint8))), "of 3 dimensions"),
    ],
    ids=["no gzip", "a head alone", "cut off", "other dimensions"],
)
def test_files_that_hold_no_images_are_refused(contents, tmp_path, images, said):
    contents["train-images-idx3-ubyte.gz"] = images
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        source_of(contents).read(tmp_path)


def test_no_more_is_unpacked_than_is_allowed(contents, tmp_path, monkeypatch):
    monkeypatch.setattr(FashionMnist, "max_member_bytes", 1000)
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="but 985 follow"):
        source_of(contents).read(tmp_path)


def test_content_of_the_wrong_length_is_not_an_idx_array():
    whole = idx(np.arange(6, dtype=np.uint8).reshape(1, 2, 3))
    assert idx_array(whole, 3).tolist() == [[[0, 1, 2], [3, 4, 5]]]
    for wrong in (whole[:-1], whole + b"\0", whole[:7], b""):
        with pytest.raises(ValueError):
            idx_array(wrong, 3)
