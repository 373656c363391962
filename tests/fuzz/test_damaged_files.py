"""Files with wrong bytes are refused, or read as exactly what they were written as; never as anything else."""

import dataclasses
from hashlib import md5

import pytest
import torch
from corruption import damaged, repeat, tried
from hypothesis import strategies as st

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.data.sources.base import SPLITS, AllSourcesFailed
from cifar_pipeline.data.sources.cifar import FOLDER, Cifar10
from cifar_pipeline.training.checkpoints import read_checkpoint
from cifar_pipeline.utils.errors import UserError
from helpers.tiny_cifar10 import META, batch, pack

PUBLISHED = {
    "batches.meta": META,
    "data_batch_1": batch(1, images=4),
    "test_batch": batch(2, images=4),
}
SMALL = Cifar10({name: md5(content).hexdigest() for name, content in PUBLISHED.items()})


def values(dataset):
    """All that is read from a data set."""
    arrays = [array.tobytes() for part in SPLITS for array in dataset.split(part)]
    return dataclasses.asdict(dataset), arrays


@tried(40)
def test_a_damaged_raw_batch_is_refused_or_read_as_it_was(cases, tmp_path):
    for name, content in PUBLISHED.items():
        (tmp_path / name).write_bytes(content)
    whole = SMALL.read(tmp_path)

    @repeat(cases, st.data())
    def check(data):
        name = data.draw(st.sampled_from(sorted(PUBLISHED)))
        (tmp_path / name).write_bytes(data.draw(damaged(PUBLISHED[name])))
        try:
            read = SMALL.read(tmp_path)
        except UserError:
            return
        finally:
            (tmp_path / name).write_bytes(PUBLISHED[name])
        assert read.train_images.tobytes() == whole.train_images.tobytes() and read.classes == whole.classes


@tried(40)
def test_a_damaged_archive_is_refused_or_unpacked_as_it_was(cases, tmp_path, monkeypatch):
    content = pack({f"{FOLDER}/{name}": file for name, file in PUBLISHED.items()})
    path = tmp_path / "archive.tar.gz"
    monkeypatch.setenv("CIFAR10_SOURCE", str(path))
    raw = tmp_path / "raw"

    @repeat(cases, damaged(content))
    def check(wrong):
        path.write_bytes(wrong)
        try:
            SMALL.fetch(raw, [], 1, tmp_path / "cache")
        except AllSourcesFailed:
            assert not raw.exists()
            return
        assert {file.name: file.read_bytes() for file in raw.iterdir()} == PUBLISHED
        for file in raw.iterdir():
            file.unlink()
        raw.rmdir()


@tried(40)
@pytest.mark.parametrize("file", ["dataset.json", "train/images.npy", "val/labels.npy"])
def test_a_damaged_processed_file_is_refused_or_read_as_it_was(cases, file, digits, tmp_path):
    whole = values(digits)
    path = digits.folder / file
    content = path.read_bytes()

    @repeat(cases, damaged(content))
    def check(wrong):
        path.unlink()  # never into the file that is mapped
        path.write_bytes(wrong)
        try:
            dataset = Dataset.open(digits.folder)
            dataset.verify()
            assert values(dataset) == whole
        except UserError as refusal:
            assert "\n" not in str(refusal)
        finally:
            path.unlink()
            path.write_bytes(content)


@tried(80)
def test_a_damaged_checkpoint_is_refused_or_read_as_it_was(cases, tmp_path):
    path = tmp_path / "last.ckpt"
    weights = {"weight": torch.arange(12.0).reshape(3, 4), "steps": torch.tensor(7)}
    torch.save({"state_dict": weights, "fingerprint": "abc", "epoch": 3}, path)
    content = path.read_bytes()

    @repeat(cases, damaged(content))
    def check(wrong):
        path.write_bytes(wrong)
        try:
            read = read_checkpoint(path)
        except UserError as refusal:
            assert "\n" not in str(refusal)
            return
        assert (read["fingerprint"], read["epoch"]) == ("abc", 3) and set(read["state_dict"]) == set(weights)
        for name, value in weights.items():
            assert torch.equal(read["state_dict"][name], value)
