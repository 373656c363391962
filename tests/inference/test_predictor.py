"""Files are answered for by the code that a training is measured by: the same numbers, whatever is among them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from small_model import CLASSES, facts, network, random_images

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.data.image_paths import count_image_files, iter_image_files
from cifar_pipeline.inference.metadata import ModelMetadata
from cifar_pipeline.inference.onnx_session import MODEL_FILE, OnnxSession
from cifar_pipeline.inference.predictor import Predictor, threads_for
from cifar_pipeline.utils.errors import UserError


@pytest.fixture(scope="module")
def predictor(exported: Path) -> Predictor:
    return Predictor.open(exported)


def saved(folder: Path, images: np.ndarray) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


def test_files_get_the_numbers_that_the_training_is_measured_by(
    exported: Path, predictor: Predictor, digits: Dataset, tmp_path: Path
) -> None:
    """The test part as files, against what `evaluate` computes of its arrays."""
    images, _ = digits.split("test")
    _, expected = OnnxSession.open(exported, threads=1).predict(images, 1000)
    answers = list(predictor.predictions(saved(tmp_path, images), 1000, len(CLASSES)))
    found = np.array([[dict(answer.ranking)[name] for name in CLASSES] for answer in answers], np.float32)
    np.testing.assert_array_equal(found, expected)


def test_images_are_normalised_as_in_training(predictor: Predictor) -> None:
    images = random_images(5)
    with torch.inference_mode():
        net = network().eval().to(memory_format=torch.contiguous_format)
        plain = torch.softmax(net.net((torch.from_numpy(images).float() / 255 - 0.5).div(0.5).permute(0, 3, 1, 2)), 1)
    np.testing.assert_allclose(predictor.probabilities(images), plain.numpy(), atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_bad_files_stop_nothing_and_portions_are_no_matter(
    predictor: Predictor, tmp_path: Path, batch_size: int
) -> None:
    paths = saved(tmp_path, random_images(7))
    paths[2].write_bytes(b"no image")
    paths[5].write_bytes(paths[4].read_bytes()[:2000])
    answers = list(predictor.predictions([*paths, tmp_path / "none.png"], batch_size, 2))
    assert [answer.file for answer in answers] == [*map(str, paths), str(tmp_path / "none.png")]
    assert [place for place, answer in enumerate(answers) if answer.error] == [2, 5, 7]
    ranking = predictor.top_k(random_images(7), 2)
    for place in (0, 1, 3, 4, 6):
        (name, value), second = answers[place].ranking
        assert (name, second[0]) == (ranking[place][0][0], ranking[place][1][0]) and value >= second[1]
        assert value == pytest.approx(ranking[place][0][1], abs=1e-6)


def test_only_a_portion_is_in_memory(predictor: Predictor, tmp_path: Path) -> None:
    (path,) = saved(tmp_path, random_images(1))
    asked = []

    def endless():  # type: ignore[no-untyped-def]
        while True:
            asked.append(path)
            yield path

    answers = predictor.predictions(endless(), 4, 1)
    for _ in range(5):
        next(answers)
    assert len(asked) == 12  # the portion that is answered for, the one after it, and the one that is read meanwhile


def test_a_folder_stands_for_the_images_in_it_and_below(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt", "under/c.webp", "under/deep/d.tiff", "empty/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in iter_image_files([str(tmp_path)])]
    assert found == ["a.JPG", "b.png", "under/c.webp", "under/deep/d.tiff"]
    odd = [str(tmp_path / name) for name in ("notes.txt", "nowhere.png", "empty")]
    assert [str(path) for path in iter_image_files(odd)] == odd  # to be complained about, and not passed over
    assert count_image_files([str(tmp_path), *odd]) == 7


def test_a_list_stands_for_its_paths(tmp_path: Path) -> None:
    (tmp_path / "with space.png").touch()
    listed = [b"\xef\xbb\xbf" + f"{tmp_path}/with space.png\n".encode(), b"\n", b"other.png\r\n", b"-\n"]
    names = [path.name for path in iter_image_files(["first.png", "-", "last.png"], listed)]
    assert names == ["first.png", "with space.png", "other.png", "last.png"]
    assert count_image_files(["-"]) is None


def changed(exported: Path, folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """The model with other facts."""
    shutil.copytree(exported, folder)
    model = onnx.load(folder / MODEL_FILE)
    facts = json.loads(model.metadata_props[0].value)
    edit(facts)
    model.metadata_props[0].value = json.dumps(facts)
    onnx.save(model, folder / MODEL_FILE)
    return folder


def test_a_model_says_all_that_it_takes_to_use_it(exported: Path) -> None:
    said = ModelMetadata.read(exported)
    assert (said.classes, said.shape, said.output_activation) == (CLASSES, (32, 32, 3), "softmax")
    assert (said.dataset, said.dataset_hash) == ("drawn", 64 * "d")
    assert (said.fingerprint, said.commit) == (facts()["fingerprint"], facts()["commit"])


def test_a_file_that_says_nothing_of_its_classes_is_refused(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "mute")
    model = onnx.load(exported / MODEL_FILE)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "mute" / MODEL_FILE)
    with pytest.raises(UserError, match="has no metadata, so it was not made by this project"):
        Predictor.open(tmp_path / "mute")


def test_a_model_of_a_newer_commit_is_refused_by_its_commit(exported: Path, tmp_path: Path) -> None:
    newer = changed(exported, tmp_path / "newer", lambda facts: facts.update(format=2, commit="feedbee"))
    with pytest.raises(UserError, match=r"made by a newer commit: run `git checkout feedbee` to use it"):
        Predictor.open(newer)
    sly = changed(exported, tmp_path / "sly", lambda facts: facts.update(format=2, commit="main; rm -rf ~"))
    with pytest.raises(UserError, match=r"run `git checkout main` to use it"):
        Predictor.open(sly)


ODD: list[dict[str, Any]] = [
    {"classes": ["a"]}, {"shape": [16, 16, 3]}, {"shape": [32, 32]}, {"shape": "cat"}, {"dataset": None},
    {"resize_mode": "guess"}, {"format": "new"}, {"classes": None},
]  # fmt: skip


@pytest.mark.parametrize("edit", ODD, ids=str)
def test_a_model_that_is_not_as_it_says_is_refused(exported: Path, tmp_path: Path, edit: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="The metadata of .* (is invalid|does not match its graph)"):
        Predictor.open(changed(exported, tmp_path / "odd", lambda facts: facts.update(edit)))


def test_nothing_that_a_model_names_is_imported(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trap = {"_target_": "os.mkdir", "path": "sprung", "_args_": ["sprung"]}
    odd = changed(exported, tmp_path / "odd", lambda facts: facts.update(probabilities=trap, loss=trap, model=trap))
    assert Predictor.open(odd).top_k(random_images(1), 1)
    (odd / "MLmodel").write_text("!!python/object/apply:os.mkdir [sprung]")
    assert Predictor.open(odd).top_k(random_images(1), 1)
    assert not (tmp_path / "sprung").exists()


def test_threads_are_those_of_machine_threads() -> None:
    assert [
        threads_for("auto", 8),
        threads_for("auto", 8, reader_threads=1),
        threads_for("auto", 1, reader_threads=1),
    ] == [8, 7, 1]
    assert threads_for(3, 8) == 3


def test_a_session_computes_on_the_threads_that_it_is_given(exported: Path) -> None:
    session = OnnxSession.open(exported, threads=3)
    assert session.session.get_session_options().intra_op_num_threads == 3 and session.device == "cpu, 3 threads"
