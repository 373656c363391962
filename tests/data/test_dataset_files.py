"""data/processed: what is written is read again, and nothing else is."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from cifar_pipeline.data.dataset import CHUNK_BYTES, Dataset, rows_per_chunk
from cifar_pipeline.data.preprocessing import channel_mean_std, require_usable, write_dataset
from cifar_pipeline.data.sources.base import SPLITS, RawDataset
from cifar_pipeline.data.sources.digits import Digits
from cifar_pipeline.data.splits import stratified_split
from cifar_pipeline.utils.errors import UserError
from helpers.dir_snapshot import content_of

ASKED = {"source": {"_target_": "a.b.C"}, "fallback": {"_target_": "d.e.F"}, "val_fraction": 0.25, "split_seed": 0}


def official(images: int = 40) -> RawDataset:
    random = np.random.default_rng(0)
    train, test = (random.integers(0, 256, (count, 5, 4, 3), np.uint8) for count in (images, 8))
    return RawDataset(("cat", "dog"), train, np.arange(images) % 2, test, np.arange(8) % 2)


def from_files() -> RawDataset:
    names = [f"{number}.png" for number in range(40)]
    return replace(official(), train_names=names, test_names=names[:8])


def make(folder, fraction: float = 0.25, used=ASKED, data: RawDataset | None = None) -> Dataset:
    data = data or official()
    folder.mkdir()
    train, val = stratified_split(data.train_labels, fraction, 0)
    write_dataset(
        folder, data, train, val, source=Digits(0.2, 8), requested_title="CIFAR-10", requested=ASKED, effective=used
    )
    return Dataset.open(folder)


def test_a_written_dataset_is_read_back(tmp_path):
    data, dataset = official(), make(tmp_path / "processed")
    train, val = stratified_split(data.train_labels, 0.25, 0)
    expected = {
        "train": (data.train_images[train], data.train_labels[train]),
        "val": (data.train_images[val], data.train_labels[val]),
        "test": (data.test_images, data.test_labels),
    }
    for part in SPLITS:
        for found, wanted in zip(dataset.split(part), expected[part], strict=True):
            np.testing.assert_array_equal(found, wanted)
            assert found.dtype == wanted.dtype
            assert isinstance(found, np.memmap)
    assert dataset.sizes == {"train": 30, "val": 10, "test": 8}
    assert dataset.shape == (5, 4, 3)
    assert dataset.classes == ("cat", "dog")
    assert (dataset.name, dataset.requested) == ("digits", ASKED)
    scaled = expected["train"][0] / 255
    np.testing.assert_allclose(dataset.mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, scaled.std((0, 1, 2)), rtol=1e-12)
    dataset.verify()


def test_the_same_data_is_the_same_bytes(tmp_path):
    one, two = make(tmp_path / "one"), make(tmp_path / "two")
    assert content_of(one.folder) == content_of(two.folder)
    assert make(tmp_path / "three", fraction=0.5).hash != one.hash


def test_data_larger_than_a_chunk_is_written_completely(tmp_path, monkeypatch):
    monkeypatch.setattr("cifar_pipeline.data.dataset.CHUNK_BYTES", 1000)
    data = official(40)
    dataset = make(tmp_path / "x", 0, data=data)
    np.testing.assert_array_equal(dataset.split("train")[0], data.train_images)
    np.testing.assert_allclose(dataset.mean, data.train_images.mean((0, 1, 2)) / 255, rtol=1e-12)
    dataset.verify()


def test_a_chunk_has_at_least_one_image():
    assert rows_per_chunk(3072) * 3072 <= CHUNK_BYTES
    assert rows_per_chunk(2 * CHUNK_BYTES) == 1


def test_images_in_two_splits_are_counted_and_the_first_of_them_listed(tmp_path):
    data = official()
    train, _ = stratified_split(data.train_labels, 0.25, 0)
    data.test_images[:3] = data.train_images[train[[4, 5, 4]]]
    data.test_labels[:3] = data.train_labels[train[[4, 5, 4]]]
    assert list(make(tmp_path / "x", data=data).describe_duplicates()) == [
        "3 images of the test split are in the train split as well."
    ]
    assert make(tmp_path / "y", data=data).duplicates["train, test"]["pairs"] == [[4, 0], [5, 1], [4, 2]]
    assert list(make(tmp_path / "z").describe_duplicates()) == []


def test_equal_images_of_two_classes_are_counted_and_the_first_of_them_listed(tmp_path):
    data = official()
    train, _ = stratified_split(data.train_labels, 0.25, 0)
    labels = data.train_labels[train]
    other = int(np.flatnonzero(labels != labels[0])[0])
    data.train_images[train[other]] = data.train_images[train[0]]
    data.test_images[2] = data.train_images[train[0]]
    data.test_labels[2] = labels[other]
    dataset = make(tmp_path / "x", data=data)
    assert dataset.contradictions == {"count": 2, "pairs": [["train", 0, "train", other], ["train", 0, "test", 2]]}
    assert list(dataset.describe_duplicates()) == [
        "1 image of the test split is in the train split as well.",
        "2 images have the same pixels as an image of another class; one of the two labels must be wrong.",
    ]
    assert make(tmp_path / "y").contradictions == {"count": 0, "pairs": []}


def test_statistics_of_one_color_are_exact():
    with ThreadPoolExecutor(2) as pool:
        assert channel_mean_std(np.full((3, 2, 2, 1), 51, np.uint8), pool) == ([0.2], [0.0])


@pytest.mark.parametrize("shape", [(7, 9, 5, 3), (70_000, 1, 1, 1), (70, 300, 300, 3)])
def test_statistics_are_those_of_floating_point_and_do_not_overflow(shape):
    """The third array has more than one chunk; sums of squares of white lines exceed 32 bits in the second."""
    images = np.random.default_rng(0).integers(250, 256, shape, np.uint8)
    with ThreadPoolExecutor(2) as pool:
        mean, std = channel_mean_std(images, pool)
    pixels = images.reshape(-1, shape[-1]) / 255
    np.testing.assert_allclose([mean, std], [pixels.mean(0), pixels.std(0)], rtol=1e-9)


def test_a_validation_fraction_of_zero_is_an_empty_split(tmp_path):
    images, labels = make(tmp_path / "x", 0).split("val")
    assert images.shape == (0, 5, 4, 3)
    assert labels.shape == (0,)


def test_torch_takes_the_arrays_without_a_warning_and_cannot_change_the_files(tmp_path, recwarn):
    dataset = make(tmp_path / "x")
    torch.from_numpy(dataset.split("train")[0]).zero_()
    assert not recwarn.list
    dataset.verify()


def test_a_fallback_is_named_in_caption_and_summary(tmp_path):
    asked = make(tmp_path / "asked")
    assert not asked.is_fallback
    assert asked.caption == "digits"
    fallback = make(tmp_path / "fallback", used=ASKED | {"source": ASKED["fallback"]})
    assert fallback.is_fallback
    assert fallback.caption == "digits, in place of CIFAR-10"
    assert fallback.summary()["fallback"]
    assert not asked.summary()["fallback"]


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def pickled(path):
    np.save(path, np.array([{}]), allow_pickle=True)


def other_shape(path):
    np.save(path, np.zeros((30, 5, 4, 1), np.uint8))


def other_type(path):
    np.save(path, np.load(path).astype(np.int32))


@pytest.mark.parametrize("damage", [cut, empty, pickled, other_shape, other_type, lambda path: path.unlink()])
@pytest.mark.parametrize("file", ["train/images.npy", "test/labels.npy"])
def test_a_corrupt_array_is_refused(damage, file, tmp_path):
    damage(make(tmp_path / "x").folder / file)
    with pytest.raises(UserError) as refusal:
        Dataset.open(tmp_path / "x")
    assert str(tmp_path / "x" / file) in str(refusal.value)
    assert "dvc repro -f preprocess" in str(refusal.value)


def test_verify_detects_an_array_of_another_dataset(tmp_path):
    dataset = make(tmp_path / "x")
    np.save(dataset.folder / "val" / "labels.npy", np.zeros(10, np.int64))
    with pytest.raises(UserError, match="val/labels.npy has changed since it was written"):
        Dataset.open(tmp_path / "x").verify()


@pytest.mark.parametrize("change", ["missing", "cut", "no dictionary", "key missing", "foreign key", "part missing"])
def test_a_corrupt_description_is_refused(change, tmp_path):
    path = make(tmp_path / "x").folder / "dataset.json"
    values = json.loads(path.read_text())
    if change == "missing":
        path.unlink()
    elif change == "cut":
        path.write_text(path.read_text()[:-10])
    elif change == "no dictionary":
        path.write_text("[]")
    elif change == "key missing":
        path.write_text(json.dumps({key: value for key, value in values.items() if key != "mean"}))
    elif change == "foreign key":
        path.write_text(json.dumps(values | {"colour": 1}))
    else:
        path.write_text(json.dumps(values | {"sizes": {"train": 30}}))
    with pytest.raises(UserError, match="dataset.json.*dvc repro -f preprocess"):
        Dataset.open(tmp_path / "x")


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("train_images", np.zeros((40, 5, 4, 3), np.float32), "float32"),
        ("test_images", np.zeros((8, 9, 4, 3), np.uint8), "of the same size"),
        ("test_labels", np.zeros(7, np.int64), "one for each image"),
        ("train_labels", np.full(40, 2), "from 0 to 1"),
    ],
)
def test_a_custom_source_with_invalid_arrays_is_refused(field, value, word):
    values = vars(official()) | {field: value}
    with pytest.raises(UserError, match=word):
        RawDataset(**values)


@pytest.mark.parametrize("text", ["[", '["a.png"]', '{"a": 1}', json.dumps([f"{number}.jpg" for number in range(30)])])
def test_a_list_of_files_that_does_not_match_the_split_is_refused(text, tmp_path):
    dataset = make(tmp_path / "x", data=from_files())
    (dataset.folder / "train" / "files.json").write_text(text)
    with pytest.raises(UserError, match=r"train/files\.json is corrupt or belongs to another dataset; `dvc repro"):
        dataset.files("train")


def test_a_removed_list_of_files_is_not_taken_for_data_without_files(tmp_path):
    dataset = make(tmp_path / "x", data=from_files())
    assert dataset.files("test") == [f"{number}.png" for number in range(8)]
    (dataset.folder / "train" / "files.json").unlink()
    for read in (lambda: dataset.files("train"), dataset.verify):
        with pytest.raises(UserError, match=r"train/files\.json is missing; `dvc repro -f preprocess` rebuilds it"):
            read()


def labelled(classes: tuple[str, ...], train: list[int], test: list[int]) -> RawDataset:
    def images(labels: list[int]) -> np.ndarray:
        return np.zeros((len(labels), 4, 4, 3), np.uint8)

    return RawDataset(classes, images(train), np.array(train, np.int64), images(test), np.array(test, np.int64))


@pytest.mark.parametrize(
    ("classes", "train", "test", "words"),
    [
        (("ant",), [0, 0], [0], "own has 1 class: at least two are needed"),
        (("ant", "bee"), [0, 0], [0, 1], "own has no training images of bee"),
        (("ant", "bee"), [0, 1], [], "own has no test images"),
        (("ant", "ant"), [0, 1], [0], "own has two classes named ant"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused(classes, train, test, words):
    official = labelled(classes, train, test)
    with pytest.raises(UserError, match=words):
        require_usable(official, np.arange(len(train)), "own")
