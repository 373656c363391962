"""Test the classification of files: the same numbers as in evaluation, errors, and the metadata of models."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from small_model import CLASSES, network, random_images, training_metadata

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.data.image_paths import count_image_files, iter_image_files
from cifar_pipeline.inference.metadata import ModelMetadata
from cifar_pipeline.inference.onnx_session import OnnxSession
from cifar_pipeline.inference.predictor import Predictor, threads_for
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.file_hashes import HASHES_FILE
from cifar_pipeline.utils.paths import MODEL_FILE


@pytest.fixture(scope="module")
def predictor(exported: Path) -> Predictor:
    return Predictor.open(exported)


def saved(folder: Path, images: np.ndarray) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


def test_files_get_the_same_numbers_as_in_evaluation(
    exported: Path, predictor: Predictor, digits: Dataset, tmp_path: Path
) -> None:
    """The test split as files, compared with the arrays that `evaluate` uses."""
    images, _ = digits.split("test")
    _, expected = OnnxSession.open(exported, threads=1).predict(images, 1000)
    predictions = list(predictor.predictions(saved(tmp_path, images), 1000, len(CLASSES)))
    actual = np.array([[dict(prediction.ranking)[name] for name in CLASSES] for prediction in predictions], np.float32)
    np.testing.assert_array_equal(actual, expected)


def test_images_are_normalized_as_in_training(predictor: Predictor) -> None:
    images = random_images(5)
    with torch.inference_mode():
        net = network().eval().to(memory_format=torch.contiguous_format)
        plain = torch.softmax(net.net((torch.from_numpy(images).float() / 255 - 0.5).div(0.5).permute(0, 3, 1, 2)), 1)
    np.testing.assert_allclose(predictor.probabilities(images), plain.numpy(), atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_unreadable_files_are_reported_at_any_batch_size(predictor: Predictor, tmp_path: Path, batch_size: int) -> None:
    paths = saved(tmp_path, random_images(7))
    paths[2].write_bytes(b"no image")
    paths[5].write_bytes(paths[4].read_bytes()[:2000])
    predictions = list(predictor.predictions([*paths, tmp_path / "none.png"], batch_size, 2))
    assert [prediction.file for prediction in predictions] == [*map(str, paths), str(tmp_path / "none.png")]
    assert [index for index, prediction in enumerate(predictions) if prediction.error] == [2, 5, 7]
    ranking = predictor.top_k(random_images(7), 2)
    for index in (0, 1, 3, 4, 6):
        (name, value), second = predictions[index].ranking
        assert (name, second[0]) == (ranking[index][0][0], ranking[index][1][0]) and value >= second[1]
        assert value == pytest.approx(ranking[index][0][1], abs=1e-6)


def test_only_a_few_batches_are_in_memory(predictor: Predictor, tmp_path: Path) -> None:
    (path,) = saved(tmp_path, random_images(1))
    requested = []

    def endless():  # type: ignore[no-untyped-def]
        while True:
            requested.append(path)
            yield path

    predictions = predictor.predictions(endless(), 4, 1)
    for _ in range(5):
        next(predictions)
    assert len(requested) == 12  # the current batch, the one after it, and the one being read


def test_a_folder_is_expanded_to_the_images_below_it(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt", "under/c.webp", "under/deep/d.tiff", "empty/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    paths = [path.relative_to(tmp_path).as_posix() for path in iter_image_files([str(tmp_path)])]
    assert paths == ["a.JPG", "b.png", "under/c.webp", "under/deep/d.tiff"]
    odd = [str(tmp_path / name) for name in ("notes.txt", "nowhere.png", "empty")]
    assert [str(path) for path in iter_image_files(odd)] == odd  # kept, so that errors are reported for them
    assert count_image_files([str(tmp_path), *odd]) == 7


def test_paths_are_read_from_a_list(tmp_path: Path) -> None:
    (tmp_path / "with space.png").touch()
    listed = [b"\xef\xbb\xbf" + f"{tmp_path}/with space.png\n".encode(), b"\n", b"other.png\r\n", b"-\n"]
    names = [path.name for path in iter_image_files(["first.png", "-", "last.png"], listed)]
    assert names == ["first.png", "with space.png", "other.png", "last.png"]
    assert count_image_files(["-"]) is None


def changed(exported: Path, folder: Path, **changes: Any) -> Path:
    """Copy the model and change its metadata."""
    shutil.copytree(exported, folder)
    model = onnx.load(folder / MODEL_FILE)
    metadata = json.loads(model.metadata_props[0].value)
    model.metadata_props[0].value = json.dumps(metadata | changes)
    onnx.save(model, folder / MODEL_FILE)
    (folder / HASHES_FILE).unlink()
    return folder


def test_a_model_has_the_metadata_that_using_it_requires(exported: Path) -> None:
    metadata = ModelMetadata.read(exported)
    assert (metadata.classes, metadata.shape, metadata.output_activation) == (CLASSES, (32, 32, 3), "softmax")
    assert (metadata.dataset, metadata.dataset_hash) == ("drawn", 64 * "d")
    assert (metadata.fingerprint, metadata.commit) == (
        training_metadata()["fingerprint"],
        training_metadata()["commit"],
    )


def test_a_file_without_metadata_is_refused(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "without")
    model = onnx.load(exported / MODEL_FILE)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "without" / MODEL_FILE)
    (tmp_path / "without" / HASHES_FILE).unlink()
    with pytest.raises(UserError, match="has no metadata, so it was not made by this project"):
        Predictor.open(tmp_path / "without")


def test_a_model_of_a_newer_commit_is_refused_with_its_commit(exported: Path, tmp_path: Path) -> None:
    newer = changed(exported, tmp_path / "newer", format=2, commit="feedbee")
    with pytest.raises(UserError, match=r"made by a newer commit: run `git checkout feedbee` to use it"):
        Predictor.open(newer)
    injecting = changed(exported, tmp_path / "injecting", format=2, commit="main; rm -rf ~")
    with pytest.raises(UserError, match=r"run `git checkout main` to use it"):
        Predictor.open(injecting)


INVALID: list[dict[str, Any]] = [
    {"classes": ["a"]}, {"shape": [16, 16, 3]}, {"shape": [32, 32]}, {"shape": "cat"}, {"dataset": None},
    {"resize_mode": "guess"}, {"format": "new"}, {"classes": None},
]  # fmt: skip


@pytest.mark.parametrize("changes", INVALID, ids=str)
def test_invalid_metadata_is_refused(exported: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="The metadata of .* (is invalid|does not match its graph)"):
        Predictor.open(changed(exported, tmp_path / "odd", **changes))


def test_nothing_that_a_model_names_is_imported(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trap = {"_target_": "os.mkdir", "path": "executed", "_args_": ["executed"]}
    odd = changed(exported, tmp_path / "odd", probabilities=trap, loss=trap, model=trap)
    assert Predictor.open(odd).top_k(random_images(1), 1)
    (odd / "MLmodel").write_text("!!python/object/apply:os.mkdir [executed]")
    assert Predictor.open(odd).top_k(random_images(1), 1)
    assert not (tmp_path / "executed").exists()


def test_threads_are_those_of_runtime_threads() -> None:
    assert [
        threads_for("auto", 8),
        threads_for("auto", 8, reader_threads=1),
        threads_for("auto", 1, reader_threads=1),
    ] == [8, 7, 1]
    assert threads_for(3, 8) == 3


def test_a_session_uses_the_given_number_of_threads(exported: Path) -> None:
    session = OnnxSession.open(exported, threads=3)
    assert session.session.get_session_options().intra_op_num_threads == 3 and session.device == "cpu, 3 threads"
