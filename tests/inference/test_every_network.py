"""Whatever network is chosen, its model file answers as torch does: to 1e-4 in probability, and with the same class."""

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
    build_bare_model,
    build_inference_model,
    get_activation,
)
from helpers.config_project import Project, options_of

CLASSES = tuple(map(str, range(10)))
TOLERANCE, MARGIN = 1e-4, 1e-3
LONG = pytest.mark.long


class Drawn:
    """A data set of which only its measures are asked."""

    title, classes, mean, std = "drawn", CLASSES, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)

    def __init__(self, size: int) -> None:
        self.shape = (size, size, 3)


def learned(net: nn.Module, shape: tuple[int, int, int]) -> None:
    """Weights and statistics as a training leaves them: none of them neutral, and logits that tell images apart."""
    torch.manual_seed(1)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
        # Answers that differ: without it, untrained networks say nearly the same of every image.
        pictures = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (50, *shape), np.uint8))
        last = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
        if not last.weight.any():  # some begin with zeros
            last.weight.normal_()
        spread = net.eval()(pictures).std(0).mean()
        last.weight.mul_(1 / spread)


def compare(project: Project, size: int, words: list[str], images: int = 1000, way: str = "softmax") -> None:
    config = project.compose(*words)
    net = build_bare_model(config, Drawn(size))
    deployed = build_inference_model(net, config, Drawn(size))
    # Exported before the training, filled after it: as `train` does.
    graph = OnnxTemplate.of(deployed, (size, size, 3), way)
    learned(deployed, (size, size, 3))
    averaged = torch.optim.swa_utils.AveragedModel(deployed)
    state = averaged.module.state_dict() if "weight_averaging=ema" in words else deployed.state_dict()
    session = open_checked(check_model(graph.filled(state, {})), threads=2)
    pictures = np.random.default_rng(size).integers(0, 256, (images, size, size, 3), np.uint8)
    logits, found = session.predict(pictures, 100)
    expected_logits = predict_logits(deployed.eval(), pictures, 100)
    expected = get_activation(way)(expected_logits).numpy()
    assert np.abs(found - expected).max() <= TOLERANCE
    largest = np.sort(expected, axis=1)
    sure = largest[:, -1] - largest[:, -2] > MARGIN
    assert sure.any() and (found.argmax(1) == expected.argmax(1))[sure].all()
    assert np.abs(logits - expected_logits.numpy()).max() <= 1e-2 * max(1.0, float(expected_logits.abs().max()))
    # Any size of a batch.
    for number in (1, 3):
        np.testing.assert_allclose(session.predict(pictures[:number], number)[1], found[:number], atol=1e-5)


# By option of conf/model the networks that are tried, at which size and how many images, and whether it takes long.
NETWORKS: dict[str, list[tuple[str, int, int, bool]]] = {
    "lenet": [("", 32, 1000, False)],
    "airbench": [("", 32, 1000, False)],
    "airbench_wide": [("", 32, 100, True)],
    "torchvision": [("resnet18", 32, 1000, True), ("mobilenet_v3_small", 32, 1000, True), ("vit_b_16", 32, 100, True)],
    # Convolutions, a transformer, and both.
    "timm": [
        ("test_efficientnet", 32, 1000, False), ("test_vit", 160, 1000, True), ("mobilevit_xxs", 32, 1000, True),
        ("convnext_atto", 32, 1000, True), ("coatnet_nano_rw_224", 224, 50, True),
        ("swin_tiny_patch4_window7_224", 224, 50, True),
    ],
}  # fmt: skip
CASES = [
    pytest.param(option, name, size, images, id=f"{option}-{name}", marks=[LONG] if long else [])
    for option, networks in NETWORKS.items()
    for name, size, images, long in networks
]


def words_for(option: str, name: str) -> list[str]:
    return [f"model={option}", *([f"model.name={name}"] if name else [])]


def test_every_option_is_tried() -> None:
    assert set(NETWORKS) == set(options_of("model"))


@pytest.mark.parametrize(("option", "name", "size", "images"), CASES)
def test_the_file_answers_as_torch(project: Project, option: str, name: str, size: int, images: int) -> None:
    compare(project, size, [*words_for(option, name), "tta=none"], images)


@pytest.mark.parametrize(("option", "name", "size", "images"), CASES)
@pytest.mark.long
def test_the_file_answers_as_torch_with_views_and_averaged_weights(
    project: Project, option: str, name: str, size: int, images: int
) -> None:
    compare(project, size, [*words_for(option, name), "tta=flip_shift", "weight_averaging=ema"], min(images, 200))


@pytest.mark.parametrize("way", OUTPUT_ACTIVATIONS)
def test_each_way_to_probabilities_is_in_the_file(project: Project, way: str) -> None:
    compare(project, 32, ["model=lenet", "tta=none"], 200, way)


def test_six_views_and_the_average_of_weights_are_in_the_file(project: Project) -> None:
    compare(project, 32, ["model=lenet", "tta=flip_shift", "weight_averaging=ema"])


def test_channels_last_weights_are_exported_as_they_are(project: Project, tmp_path: Path) -> None:
    config = project.compose("model=airbench")
    net = build_inference_model(build_bare_model(config, Drawn(32)), config, Drawn(32))
    graph = OnnxTemplate.of(net, (32, 32, 3), "softmax")
    other = build_inference_model(net, config, Drawn(32)).to(memory_format=torch.channels_last)
    assert isinstance(other, NormalizedModel)
    assert graph.filled(net.state_dict(), {}) == graph.filled(other.state_dict(), {})
