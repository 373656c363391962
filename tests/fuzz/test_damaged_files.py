"""A corrupted file is refused or read with its original content, never with other content."""

import dataclasses
from hashlib import md5

import pytest
import torch
from corruption import corrupted, num_examples, run_examples
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
    """Everything that is read from a data set."""
    arrays = [array.tobytes() for split in SPLITS for array in dataset.split(split)]
    return dataclasses.asdict(dataset), arrays


@num_examples(40)
def test_a_damaged_raw_batch_is_refused_or_read_as_it_was(examples, tmp_path):
    for name, content in PUBLISHED.items():
        (tmp_path / name).write_bytes(content)
    original = SMALL.read(tmp_path)

    @run_examples(examples, st.data())
    def check(data):
        name = data.draw(st.sampled_from(sorted(PUBLISHED)))
        (tmp_path / name).write_bytes(data.draw(corrupted(PUBLISHED[name])))
        try:
            read = SMALL.read(tmp_path)
        except UserError:
            return
        finally:
            (tmp_path / name).write_bytes(PUBLISHED[name])
        assert read.train_images.tobytes() == original.train_images.tobytes() and read.classes == original.classes


@num_examples(40)
def test_a_damaged_archive_is_refused_or_unpacked_as_it_was(examples, tmp_path, monkeypatch):
    content = pack({f"{FOLDER}/{name}": file for name, file in PUBLISHED.items()})
    path = tmp_path / "archive.tar.gz"
    monkeypatch.setenv("CIFAR10_SOURCE", str(path))
    raw = tmp_path / "raw"

    @run_examples(examples, corrupted(content))
    def check(corrupt):
        path.write_bytes(corrupt)
        try:
            SMALL.fetch(raw, [], 1, tmp_path / "cache")
        except AllSourcesFailed:
            assert not raw.exists()
            return
        assert {file.name: file.read_bytes() for file in raw.iterdir()} == PUBLISHED
        for file in raw.iterdir():
            file.unlink()
        raw.rmdir()


@num_examples(40)
@pytest.mark.parametrize("file", ["dataset.json", "train/images.npy", "val/labels.npy"])
def test_a_damaged_processed_file_is_refused_or_read_as_it_was(examples, file, digits, tmp_path):
    original = values(digits)
    path = digits.folder / file
    content = path.read_bytes()

    @run_examples(examples, corrupted(content))
    def check(corrupt):
        path.unlink()  # never write into the memory-mapped file
        path.write_bytes(corrupt)
        try:
            dataset = Dataset.open(digits.folder)
            dataset.verify()
            assert values(dataset) == original
        except UserError as error:
            assert "\n" not in str(error)
        finally:
            path.unlink()
            path.write_bytes(content)


@num_examples(80)
def test_a_damaged_checkpoint_is_refused_or_read_as_it_was(examples, tmp_path):
    path = tmp_path / "last.ckpt"
    weights = {"weight": torch.arange(12.0).reshape(3, 4), "steps": torch.tensor(7)}
    torch.save({"state_dict": weights, "fingerprint": "abc", "epoch": 3}, path)
    content = path.read_bytes()

    @run_examples(examples, corrupted(content))
    def check(corrupt):
        path.write_bytes(corrupt)
        try:
            read = read_checkpoint(path)
        except UserError as error:
            assert "\n" not in str(error)
            return
        assert (read["fingerprint"], read["epoch"]) == ("abc", 3) and set(read["state_dict"]) == set(weights)
        for name, value in weights.items():
            assert torch.equal(read["state_dict"][name], value)
