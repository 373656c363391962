"""Files are answered for by the code that a training is measured by: the same numbers, whatever is among them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from small_model import CLASSES, facts, network, pictures

from cifar_pipeline.console import Refusal
from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.inference.batched import logits_of
from cifar_pipeline.inference.export import load_model
from cifar_pipeline.inference.facts import ModelFacts
from cifar_pipeline.inference.found import count, picture_files
from cifar_pipeline.inference.predictor import Predictor
from cifar_pipeline.inference.probabilities import by_name


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
    images, _ = digits.part("test")
    expected = by_name("softmax")(logits_of(load_model(exported), images, 1000))
    answers = list(predictor.predictions(saved(tmp_path, images), 1000, len(CLASSES)))
    found = torch.tensor([[dict(answer.ranking)[name] for name in CLASSES] for answer in answers])
    assert torch.equal(found, expected)


def test_pictures_are_normalised_as_in_training(predictor: Predictor) -> None:
    images = pictures(5)
    with torch.inference_mode():
        net = network().eval().to(memory_format=torch.contiguous_format)
        plain = torch.softmax(net.net((torch.from_numpy(images).float() / 255 - 0.5).div(0.5).permute(0, 3, 1, 2)), 1)
    torch.testing.assert_close(predictor.probabilities(images), plain)


def test_a_model_that_is_replaced_while_it_is_read_is_read_again(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, new = tmp_path / "model", tmp_path / "new"
    shutil.copytree(exported, folder)
    shutil.copytree(exported, new)
    described = yaml.safe_load((new / "MLmodel").read_text())
    described["metadata"]["classes"] = list(reversed(CLASSES))
    (new / "MLmodel").write_text(yaml.safe_dump(described))

    def load(path: Path) -> torch.nn.Module:
        if new.exists():
            shutil.rmtree(path)
            new.rename(path)
        return load_model(path)

    monkeypatch.setattr("cifar_pipeline.inference.predictor.load_model", load)
    assert Predictor.open(folder).facts.classes == tuple(reversed(CLASSES))


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_bad_files_stop_nothing_and_portions_are_no_matter(
    predictor: Predictor, tmp_path: Path, batch_size: int
) -> None:
    paths = saved(tmp_path, pictures(7))
    paths[2].write_bytes(b"no picture")
    paths[5].write_bytes(paths[4].read_bytes()[:2000])
    answers = list(predictor.predictions([*paths, tmp_path / "none.png"], batch_size, 2))
    assert [answer.file for answer in answers] == [*map(str, paths), str(tmp_path / "none.png")]
    assert [place for place, answer in enumerate(answers) if answer.error] == [2, 5, 7]
    ranking = predictor.ranking(pictures(7), 2)
    for place in (0, 1, 3, 4, 6):
        (name, value), second = answers[place].ranking
        assert (name, second[0]) == (ranking[place][0][0], ranking[place][1][0]) and value >= second[1]
        assert value == pytest.approx(ranking[place][0][1], abs=1e-6)


def test_only_a_portion_is_in_memory(predictor: Predictor, tmp_path: Path) -> None:
    (path,) = saved(tmp_path, pictures(1))
    asked = []

    def endless():  # type: ignore[no-untyped-def]
        while True:
            asked.append(path)
            yield path

    answers = predictor.predictions(endless(), 4, 1)
    for _ in range(5):
        next(answers)
    assert len(asked) == 12  # the portion that is answered for, the one after it, and the one that is read meanwhile


def test_a_folder_stands_for_the_pictures_in_it_and_below(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt", "under/c.webp", "under/deep/d.tiff", "empty/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in picture_files([str(tmp_path)])]
    assert found == ["a.JPG", "b.png", "under/c.webp", "under/deep/d.tiff"]
    odd = [str(tmp_path / name) for name in ("notes.txt", "nowhere.png", "empty")]
    assert [str(path) for path in picture_files(odd)] == odd  # to be complained about, and not passed over
    assert count([str(tmp_path), *odd]) == 7


def test_a_list_stands_for_its_paths(tmp_path: Path) -> None:
    (tmp_path / "with space.png").touch()
    listed = [b"\xef\xbb\xbf" + f"{tmp_path}/with space.png\n".encode(), b"\n", b"other.png\r\n", b"-\n"]
    names = [path.name for path in picture_files(["first.png", "-", "last.png"], listed)]
    assert names == ["first.png", "with space.png", "other.png", "last.png"]
    assert count(["-"]) is None


def changed(exported: Path, folder: Path, edit: dict[str, object]) -> Path:
    """The model with other facts."""
    shutil.copytree(exported, folder)
    content = yaml.safe_load((folder / "MLmodel").read_text())
    content["metadata"].update(edit)
    (folder / "MLmodel").write_text(yaml.safe_dump(content))
    return folder


def test_a_model_says_all_that_it_takes_to_use_it(exported: Path) -> None:
    said = ModelFacts.read(exported)
    assert (said.classes, said.shape, said.probabilities) == (CLASSES, (32, 32, 3), "softmax")
    assert (said.dataset, said.dataset_hash) == ("drawn", 64 * "d")
    assert (said.identity, said.commit) == (facts()["identity"], facts()["commit"])


def test_a_model_of_an_older_commit_is_used(exported: Path, tmp_path: Path) -> None:
    """It has no facts of its own: the training's file lies beside it."""
    older = changed(exported, tmp_path / "models" / "last", {})
    content = yaml.safe_load((older / "MLmodel").read_text())
    content["metadata"] = None
    (older / "MLmodel").write_text(yaml.safe_dump(content))
    with pytest.raises(Refusal, match="does not say what its classes are"):
        Predictor.open(older)
    known = {key: value for key, value in facts().items() if key != "commit"}
    (older.parent / "training.json").write_text(json.dumps(known))
    assert Predictor.open(older).ranking(pictures(1), 1) == Predictor.open(exported).ranking(pictures(1), 1)


def test_a_model_of_a_newer_commit_is_refused_by_its_commit(exported: Path, tmp_path: Path) -> None:
    newer = changed(exported, tmp_path / "newer", {"format": 2, "commit": "feedbee"})
    with pytest.raises(Refusal, match=r"made by a newer commit: `git checkout feedbee` uses it"):
        Predictor.open(newer)
    sly = changed(exported, tmp_path / "sly", {"format": 2, "commit": "main; rm -rf ~"})
    with pytest.raises(Refusal, match=r"`git checkout main` uses it"):
        Predictor.open(sly)


@pytest.mark.parametrize(
    "edit",
    [{"classes": ["a"]}, {"shape": [16, 16, 3]}, {"shape": [32, 32]}, {"probabilities": "guess"}, {"dataset": None}],
    ids=str,
)
def test_a_model_that_is_not_as_it_says_is_refused(exported: Path, tmp_path: Path, edit: dict[str, object]) -> None:
    with pytest.raises(Refusal, match="makes no sense|does not do what it says about itself"):
        Predictor.open(changed(exported, tmp_path / "odd", edit))


@pytest.mark.parametrize("content", ["!!python/object/apply:os.mkdir [sprung]", "flavors: [", "- a list", ""], ids=str)
def test_a_description_that_is_none_is_refused_and_not_run(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = changed(exported, tmp_path / "odd", {})
    (odd / "MLmodel").write_text(content)
    with pytest.raises(Refusal, match="does not say what its classes are"):
        Predictor.open(odd)
    assert not (tmp_path / "sprung").exists()
