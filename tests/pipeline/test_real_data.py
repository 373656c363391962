"""The same stages on the real CIFAR-10, where CIFAR10_SOURCE has it."""

import tarfile

import numpy as np
import pytest
import yaml

from helpers.workspace import Workspace, make_repository, workspace_of_tree

pytestmark = pytest.mark.cifar10

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def real(real_data, tmp_path_factory) -> Workspace:
    workspace = workspace_of_tree(tmp_path_factory.mktemp("real"), source=real_data)
    make_repository(workspace)
    assert "CIFAR-10: verified, from" in workspace.dvc("repro", "preprocess")
    return workspace


def test_the_data_set_is_the_published_one(real):
    dataset = real.json("data/processed/dataset.json")
    assert dataset["title"] == "CIFAR-10" and dataset["effective"] == dataset["requested"]
    assert dataset["sizes"] == {"train": 45000, "val": 5000, "test": 10000}
    assert dataset["classes"] == CLASSES and dataset["shape"] == [32, 32, 3]
    # As published over all 50,000 training images; here without the 5,000 that are held back.
    assert dataset["mean"] == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-3)
    assert dataset["std"] == pytest.approx((0.2470, 0.2435, 0.2616), abs=1e-3)
    for part, each in (("train", 4500), ("val", 500), ("test", 1000)):
        labels = np.load(real.root / "data" / "processed" / part / "labels.npy")
        assert np.bincount(labels).tolist() == [each] * 10


@pytest.mark.long
def test_an_archive_and_a_folder_leave_the_same_raw_data(real, tmp_path):
    packed = tmp_path / "repacked.tar.gz"
    with tarfile.open(packed, "w:gz", compresslevel=1) as archive:
        archive.add(real.root / "data" / "raw" / "cifar10", arcname="cifar-10-batches-py")
    other = workspace_of_tree(tmp_path / "other", source=str(packed))
    make_repository(other)
    other.dvc("repro", "download")
    hashes = [
        yaml.safe_load(workspace.read("dvc.lock"))["stages"]["download"]["outs"][0]["md5"]
        for workspace in (real, other)
    ]
    assert hashes[0] == hashes[1]


@pytest.mark.long
def test_one_epoch_learns_much_more_than_chance(real):
    real.train("trainer.max_epochs=1", "trainer.batch_size=64", "optimizer.lr=0.02")
    real.run("python", "src/evaluate.py")
    assert real.json("reports/dataset.json")["fallback"] is False
    assert real.json("reports/metrics.json")["test"]["accuracy"] > 0.4
