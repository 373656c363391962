"""Test that an exported model matches its network for any number of images, and that exports are reproducible."""

import json
import shutil
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import onnx
import pytest
import torch
from mlflow.exceptions import MlflowException
from safetensors.torch import load_file
from small_model import CLASSES, SHAPE, export, network, random_images, training_metadata
from torch import Tensor, nn

from cifar_pipeline.inference import onnx_export
from cifar_pipeline.inference.graph_cache import GraphCache
from cifar_pipeline.inference.onnx_check import check_model
from cifar_pipeline.inference.onnx_export import OnnxTemplate, save_model
from cifar_pipeline.inference.onnx_session import OnnxSession
from cifar_pipeline.inference.trained_model import read_model_file
from cifar_pipeline.models.build import NormalizedModel, TestTimeAugmentation, load_weights
from cifar_pipeline.models.lenet import LeNet
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.file_hashes import HASHES_FILE
from cifar_pipeline.utils.paths import MODEL_FILE, WEIGHTS_FILE
from helpers.config_project import ROOT


def predict(folder: Path, images: np.ndarray, batch_size: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    return OnnxSession.open(folder, threads=1).predict(images, batch_size)


@pytest.mark.parametrize("number", [1, 2, 7, 1000])
def test_the_file_matches_the_network(exported: Path, number: int) -> None:
    images = random_images(number)
    with torch.inference_mode():
        expected = network().eval()(torch.from_numpy(images))
    logits, probabilities = predict(exported, images)
    assert logits.dtype == probabilities.dtype == np.float32 and logits.shape == (number, len(CLASSES))
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(probabilities, torch.softmax(expected, 1).numpy(), atol=1e-6)


def test_predictions_do_not_depend_on_the_batch_size(exported: Path) -> None:
    images = random_images(10)
    for one, other in zip(predict(exported, images, 3), predict(exported, images, 10), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_equal_networks_are_equal_bytes_without_paths(exported: Path, tmp_path: Path) -> None:
    again = OnnxTemplate.of(network(), SHAPE, "softmax")
    save_model(again, network(), training_metadata(), tmp_path / "again")
    for name in (MODEL_FILE, WEIGHTS_FILE):
        content = (exported / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == content
        assert str(ROOT).encode() not in content and b"site-packages" not in content


class PlusConstant(LeNet):
    """Add a tensor that is no weight."""

    def __init__(self, constant: float) -> None:
        super().__init__(channels=3, size=32, classes=len(CLASSES))
        self.constant = torch.full((len(CLASSES),), constant)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + self.constant


def test_networks_that_differ_in_their_weights_only_are_converted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[bool] = []
    convert = torch.onnx.export
    monkeypatch.setattr(onnx_export, "_converted", None)
    monkeypatch.setattr(
        torch.onnx, "export", lambda *args, **options: converted.append(True) or convert(*args, **options)
    )
    first, second = NormalizedModel(PlusConstant(1.0), 0.5, 0.5), NormalizedModel(PlusConstant(1.0), 0.25, 0.5)
    OnnxTemplate.of(first, SHAPE, "softmax")
    reused = OnnxTemplate.of(second, SHAPE, "softmax").model.SerializeToString()
    assert len(converted) == 1
    monkeypatch.setattr(onnx_export, "_converted", None)
    assert OnnxTemplate.of(second, SHAPE, "softmax").model.SerializeToString() == reused
    for number, (net, activation) in enumerate([(PlusConstant(2.0), "softmax"), (PlusConstant(2.0), "clipped_linear")]):
        OnnxTemplate.of(NormalizedModel(net, 0.5, 0.5), SHAPE, activation)
        assert len(converted) == 3 + number


def test_a_graph_is_taken_from_the_cache_unless_it_is_damaged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    converted: list[bool] = []
    convert = torch.onnx.export
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        torch.onnx, "export", lambda *args, **options: converted.append(True) or convert(*args, **options)
    )

    def exported(net: nn.Module, max_files: int = 2) -> bytes:
        monkeypatch.setattr(onnx_export, "_converted", None)  # as in a new process
        return OnnxTemplate.of(net, SHAPE, "softmax", GraphCache(max_files)).model.SerializeToString(deterministic=True)

    first, other = network(), network()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    expected = [exported(net, max_files=0) for net in (first, other)]
    assert [exported(net) for net in (first, other, first)] == [*expected, expected[0]] and expected[0] != expected[1]
    assert len(converted) == 3
    (path,) = (tmp_path / ".cache" / "graphs").iterdir()
    assert path.stat().st_size < len(expected[0]) / 2  # without weights
    path.write_bytes(path.read_bytes()[:-40] + bytes(40))
    assert exported(first) == expected[0] and len(converted) == 4 and "is damaged" in caplog.text
    monkeypatch.setattr(onnx_export, "version", lambda package: "0")
    assert exported(first) == expected[0] and len(converted) == 5
    exported(NormalizedModel(PlusConstant(1.0), 0.5, 0.5))
    assert len(list(path.parent.iterdir())) == 2


def test_one_graph_takes_the_weights_of_every_checkpoint(exported: Path, tmp_path: Path) -> None:
    other = network()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    export(tmp_path / "other", other)
    with torch.inference_mode():
        expected = other.eval()(torch.from_numpy(random_images(5)))
    np.testing.assert_allclose(predict(tmp_path / "other", random_images(5))[0], expected.numpy(), atol=1e-5)
    assert (tmp_path / "other" / MODEL_FILE).read_bytes() != (exported / MODEL_FILE).read_bytes()


def test_a_classifier_that_was_zero_when_the_graph_was_exported_keeps_its_bias(tmp_path: Path) -> None:
    net = network()
    with torch.no_grad():
        net.net.fc3.weight.zero_()
        net.net.fc3.bias.zero_()
    graph, trained = OnnxTemplate.of(net, SHAPE, "softmax"), network()
    save_model(graph, trained, training_metadata(), tmp_path / "trained")
    with torch.inference_mode():
        expected = trained.eval()(torch.from_numpy(random_images(5)))
    np.testing.assert_allclose(predict(tmp_path / "trained", random_images(5))[0], expected.numpy(), atol=1e-5)


def test_the_weights_file_is_the_same_with_and_without_test_time_augmentation(exported: Path, tmp_path: Path) -> None:
    assert set(load_file(exported / WEIGHTS_FILE)) == set(network().state_dict())
    augmented = network()
    augmented.net = TestTimeAugmentation(augmented.net, flip=True, shift=1, size=SHAPE[0])
    with torch.no_grad():
        for parameter in augmented.parameters():
            parameter.zero_()
    load_weights(augmented, (exported / WEIGHTS_FILE).read_bytes(), exported / WEIGHTS_FILE)
    for name, value in network().state_dict().items():
        assert torch.equal(augmented.state_dict()[name.replace("net.", "net.net.", 1)], value)
    with pytest.raises(UserError, match="the weights of another network"):
        load_weights(
            NormalizedModel(LeNet(3, 32, 7), 0.5, 0.5), (exported / WEIGHTS_FILE).read_bytes(), exported / WEIGHTS_FILE
        )
    (tmp_path / WEIGHTS_FILE).write_bytes((exported / WEIGHTS_FILE).read_bytes()[:1000])
    with pytest.raises(UserError, match=r"can't be read .*run `dvc repro -f train` to recreate it"):
        load_weights(network(), (tmp_path / WEIGHTS_FILE).read_bytes(), tmp_path / WEIGHTS_FILE)


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no model in .*nowhere: `dvc repro train` makes one"):
        OnnxSession.open(tmp_path / "nowhere", threads=1)


@pytest.mark.parametrize("keep", [0, 100, 100_000])
def test_a_damaged_model_is_refused(exported: Path, tmp_path: Path, keep: int) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(exported, damaged)
    (damaged / MODEL_FILE).write_bytes((exported / MODEL_FILE).read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model\.onnx is damaged") as refusal:
        OnnxSession.open(damaged, threads=1)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", [MODEL_FILE, WEIGHTS_FILE])
def test_changed_weights_are_refused_until_their_hashes_are_removed(exported: Path, tmp_path: Path, name: str) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(exported, damaged)
    content = bytearray((damaged / name).read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / name).write_bytes(content)

    def read() -> None:
        read_model_file(damaged / name)
        if name == MODEL_FILE:
            OnnxSession.open(damaged, threads=1)

    with pytest.raises(UserError, match=rf"{name} has changed since it was written.* remove .*hashes\.json"):
        read()
    if name == MODEL_FILE:
        with pytest.raises(UserError, match=r"model\.onnx has changed since it was written"):
            OnnxSession.open(damaged, threads=1)
    (damaged / HASHES_FILE).unlink()
    read()
    (damaged / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing: `dvc repro -f train` restores it"):
        read()


def test_mlflow_loads_the_model_with_its_signature_and_without_torch(exported: Path) -> None:
    loaded = mlflow.pyfunc.load_model(str(exported))
    images = random_images(3)
    outputs = loaded.predict(images)
    logits, probabilities = predict(exported, images)
    np.testing.assert_allclose(outputs["logits"], logits, atol=1e-6)
    np.testing.assert_allclose(outputs["probabilities"], probabilities, atol=1e-6)
    (model_input,), model_outputs = loaded.metadata.signature.inputs.inputs, loaded.metadata.signature.outputs.inputs
    assert (model_input.type, model_input.shape) == (np.dtype(np.uint8), (-1, *SHAPE))
    assert [(output.name, output.type, output.shape) for output in model_outputs] == [
        (name, np.dtype(np.float32), (-1, len(CLASSES))) for name in ("logits", "probabilities")
    ]
    with pytest.raises(MlflowException, match="shape"):
        loaded.predict(images[:, :16])
    assert set(loaded.metadata.flavors) == {"onnx", "python_function"}
    assert (exported / "input_example.json").is_file()
    packages = [line.partition("==")[0] for line in (exported / "requirements.txt").read_text().split()]
    assert set(packages) == {"mlflow", "numpy", "onnxruntime"}  # mlflow adds itself


def test_the_file_has_the_metadata_that_using_it_requires(exported: Path) -> None:
    model = onnx.load(exported / MODEL_FILE)
    assert not [tensor for tensor in model.graph.initializer if tensor.external_data]
    (entry,) = model.metadata_props
    metadata = json.loads(entry.value)
    assert tuple(metadata["classes"]) == CLASSES and metadata["fingerprint"] == training_metadata()["fingerprint"]
    assert "[N, 32, 32, 3] uint8" in metadata["input"] and "normalization is in" in metadata["preprocessing"]
    assert set(metadata["versions"]) == {"torch", "onnx", "onnxscript", "onnxruntime"}


def test_a_network_for_gray_images_of_another_size_is_exported(tmp_path: Path) -> None:
    net = NormalizedModel(LeNet(channels=1, size=28, classes=2), mean=[0.1], std=[0.3])
    grey = OnnxTemplate.of(net, (28, 28, 1), "softmax")
    save_model(grey, net, training_metadata(shape=[28, 28, 1], classes=["even", "odd"]), tmp_path / "grey")
    assert predict(tmp_path / "grey", np.zeros((5, 28, 28, 1), np.uint8))[0].shape == (5, 2)


class WithClassToken(nn.Module):
    """A network whose class token is expanded to the number of images, as a vision transformer's."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.head = nn.Parameter(torch.ones(1, 1, 3)), nn.Linear(3, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(images.shape[0], -1, -1), images.flatten(2).transpose(1, 2)], dim=1)
        return self.head(tokens.mean(dim=1))


def test_a_network_with_a_class_token_is_exported_with_test_time_augmentation() -> None:
    net = TestTimeAugmentation(WithClassToken(), flip=True, shift=2, size=SHAPE[0])
    graph = OnnxTemplate.of(NormalizedModel(net, 0.5, 0.5), SHAPE, "softmax")
    assert check_model(graph.model).bytes_per_image > 6 * 4 * int(np.prod(SHAPE))


class NotExportable(nn.Module):
    """A custom network whose forward can't be exported."""

    def __init__(self, obstacle: str) -> None:
        super().__init__()
        self.obstacle, self.head = obstacle, nn.Linear(3, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = images.mean((2, 3))
        if self.obstacle == "branches on the pixels" and features.sum() > 0:
            features = features * 2
        if self.obstacle == "an operator that ONNX has not":
            features = torch.linalg.eigvals(features.T @ features).abs()[None].expand(len(images), 3)
        if self.obstacle == "a size that depends on the pixels":
            features = features + images[images > 0].sum() + torch.nonzero(images).sum()
        return self.head(features)


@pytest.mark.parametrize(
    "obstacle", ["branches on the pixels", "an operator that ONNX has not", "a size that depends on the pixels"]
)
def test_a_network_that_cannot_be_exported_is_refused_in_a_sentence(obstacle: str) -> None:
    with pytest.raises(UserError, match=r"model: this network can't be exported as an ONNX model \(") as refusal:
        OnnxTemplate.of(NormalizedModel(NotExportable(obstacle), 0.5, 0.5), SHAPE, "softmax")
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500


def test_a_graph_whose_outputs_differ_from_the_networks_is_refused() -> None:
    class Inconsistent(LeNet):
        """A network with other logits while it is exported."""

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * (1.0 if torch.compiler.is_exporting() else 9.0)

    with pytest.raises(UserError, match=r"differ from torch's by \d"):
        OnnxTemplate.of(NormalizedModel(Inconsistent(3, 32, 10), 0.5, 0.5), SHAPE, "softmax")


def test_an_export_changes_neither_the_network_nor_the_random_state() -> None:
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    OnnxTemplate.of(net, SHAPE, "softmax")
    assert torch.equal(torch.rand(3), expected) and net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
