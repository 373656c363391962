"""Test that the model file of any network matches torch: to 1e-4 in probability, and in the predicted class."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cifar_pipeline.inference.onnx_check import check_model
from cifar_pipeline.inference.onnx_export import OnnxTemplate
from cifar_pipeline.inference.onnx_session import open_checked
from cifar_pipeline.inference.torch_model import predict_logits
from cifar_pipeline.models.build import (
    OUTPUT_ACTIVATIONS,
    NormalizedModel,
    build_inference_model,
    build_untrained_model,
    get_activation,
)
from helpers.config_project import Project, options_of

CLASSES = tuple(map(str, range(10)))
TOLERANCE, MARGIN = 1e-4, 1e-3
LONG = pytest.mark.long


class RandomDataset:
    """A dataset without images, which has a shape, classes and statistics."""

    title, classes, mean, std = "drawn", CLASSES, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)

    def __init__(self, size: int) -> None:
        self.shape = (size, size, 3)


def randomize(net: nn.Module, shape: tuple[int, int, int]) -> None:
    """Give weights and statistics non-neutral values as after a training, and logits that differ between images."""
    torch.manual_seed(1)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
        # Without this, untrained networks have nearly the same logits for every image.
        images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (50, *shape), np.uint8))
        last = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
        if not last.weight.any():  # some are initialized to zeros
            last.weight.normal_()
        spread = net.eval()(images).std(0).mean()
        last.weight.mul_(1 / spread)


def compare(project: Project, size: int, overrides: list[str], count: int = 1000, activation: str = "softmax") -> None:
    config = project.compose(*overrides)
    inference_model = build_inference_model(build_untrained_model(config, RandomDataset(size), None), config)
    # Exported before the training and filled after it, as `train` does.
    graph = OnnxTemplate.of(inference_model, (size, size, 3), activation)
    randomize(inference_model, (size, size, 3))
    averaged = torch.optim.swa_utils.AveragedModel(inference_model)
    state = averaged.module.state_dict() if "weight_averaging=ema" in overrides else inference_model.state_dict()
    session = open_checked(check_model(graph.filled(state, {})), threads=2)
    images = np.random.default_rng(size).integers(0, 256, (count, size, size, 3), np.uint8)
    logits, probabilities = session.predict(images, 100)
    expected_logits = predict_logits(inference_model.eval(), images, 100)
    expected = get_activation(activation)(expected_logits).numpy()
    assert np.abs(probabilities - expected).max() <= TOLERANCE
    ordered = np.sort(expected, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > MARGIN
    assert clear.any() and (probabilities.argmax(1) == expected.argmax(1))[clear].all()
    assert np.abs(logits - expected_logits.numpy()).max() <= 1e-2 * max(1.0, float(expected_logits.abs().max()))
    for batch_size in (1, 3):
        actual = session.predict(images[:batch_size], batch_size)[1]
        np.testing.assert_allclose(actual, probabilities[:batch_size], atol=1e-5)


# The tested networks by option of conf/model: name, image size, number of images, and whether the test is long.
NETWORKS: dict[str, list[tuple[str, int, int, bool]]] = {
    "lenet": [("", 32, 1000, False)],
    "airbench": [("", 32, 200, False)],
    "airbench_wide": [("", 32, 100, True)],
    "torchvision": [("resnet18", 32, 1000, True), ("mobilenet_v3_small", 32, 1000, True), ("vit_b_16", 32, 50, True)],
    # Convolutions, a transformer, and both.
    "timm": [
        ("test_efficientnet", 32, 100, False), ("test_vit", 160, 1000, True), ("mobilevit_xxs", 32, 1000, True),
        ("convnext_atto", 32, 1000, True), ("coatnet_nano_rw_224", 224, 50, True),
        ("swin_tiny_patch4_window7_224", 224, 50, True),
    ],
}  # fmt: skip
CASES = [
    pytest.param(option, name, size, count, id=f"{option}-{name}", marks=[LONG] if long else [])
    for option, networks in NETWORKS.items()
    for name, size, count, long in networks
]


def overrides_for(option: str, name: str) -> list[str]:
    return [f"model={option}", *([f"model.name={name}"] if name else [])]


def test_every_option_is_tested() -> None:
    assert set(NETWORKS) == set(options_of("model"))


@pytest.mark.parametrize(("option", "name", "size", "count"), CASES)
def test_the_file_matches_torch(project: Project, option: str, name: str, size: int, count: int) -> None:
    compare(project, size, [*overrides_for(option, name), "tta=none"], count)


@pytest.mark.parametrize(("option", "name", "size", "count"), CASES)
@pytest.mark.long
def test_the_file_matches_torch_with_test_time_augmentation_and_averaged_weights(
    project: Project, option: str, name: str, size: int, count: int
) -> None:
    compare(project, size, [*overrides_for(option, name), "tta=flip_shift", "weight_averaging=ema"], min(count, 200))


@pytest.mark.parametrize("activation", OUTPUT_ACTIVATIONS)
def test_each_output_activation_is_in_the_file(project: Project, activation: str) -> None:
    compare(project, 32, ["model=lenet", "tta=none"], 200, activation)


def test_test_time_augmentation_and_averaged_weights_are_in_the_file(project: Project) -> None:
    compare(project, 32, ["model=lenet", "tta=flip_shift", "weight_averaging=ema"])


def test_channels_last_weights_are_exported_as_they_are(project: Project, tmp_path: Path) -> None:
    config = project.compose("model=airbench")
    net = build_inference_model(build_untrained_model(config, RandomDataset(32), None), config)
    graph = OnnxTemplate.of(net, (32, 32, 3), "softmax")
    other = build_inference_model(net, config).to(memory_format=torch.channels_last)
    assert isinstance(other, NormalizedModel)
    assert graph.filled(net.state_dict(), {}) == graph.filled(other.state_dict(), {})
