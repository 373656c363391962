"""Test NormalizedModel, which resizes and normalizes the images for a network, and the size that it resizes them to."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cifar_pipeline.inference.onnx_check import check_model
from cifar_pipeline.inference.onnx_export import OnnxTemplate
from cifar_pipeline.inference.onnx_session import open_checked
from cifar_pipeline.models.build import NormalizedModel
from cifar_pipeline.models.lenet import LeNet
from cifar_pipeline.models.network_input import NetworkInput
from cifar_pipeline.models.pretrained import PretrainedWeights, resolve_input
from cifar_pipeline.utils.errors import UserError
from configure import configure
from helpers.config_project import Project
from helpers.parameters import some_of
from helpers.tiny_networks import tiny_network

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def random_images(count: int, channels: int = 3, size: int = 32) -> Tensor:
    numbers = np.random.default_rng(count).integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    return torch.from_numpy(numbers)


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.5), (MEAN, STD), (0.5, STD), (MEAN, 0.5), (list(MEAN), list(STD))])
def test_normalizes_by_the_formula(mean: float | list[float], std: float | list[float]) -> None:
    images = random_images(3)
    expected = ((images.numpy() / 255 - np.asarray(mean)) / np.asarray(std)).transpose(0, 3, 1, 2)
    actual = NormalizedModel(nn.Identity(), mean, std)(images)
    assert actual.dtype == torch.float32
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_half_maps_black_to_minus_one_and_white_to_one() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
    assert NormalizedModel(nn.Identity(), 0.5, 0.5)(images).flatten().tolist() == pytest.approx([-1, 1])


def test_hands_the_network_channels_last_memory() -> None:
    normalized = NormalizedModel(nn.Identity(), MEAN, STD)(random_images(4))
    assert normalized.shape == (4, 3, 32, 32)
    assert normalized.is_contiguous(memory_format=torch.channels_last)


def test_returns_the_networks_logits() -> None:
    net = LeNet(channels=3, size=32, classes=10)
    model = NormalizedModel(net, MEAN, STD)
    images = random_images(4)
    assert torch.equal(model(images), net(model.normalize(images)))


def test_normalization_is_saved_but_not_trained() -> None:
    model, other = (
        NormalizedModel(nn.Linear(1, 1), MEAN, STD),
        NormalizedModel(nn.Linear(1, 1), (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)),
    )
    assert [name for name, _ in model.named_parameters()] == ["net.weight", "net.bias"]
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.normalize(random_images(2)), model.normalize(random_images(2)))


def test_is_exported_for_any_batch_size() -> None:
    model = NormalizedModel(LeNet(channels=3, size=32, classes=10), MEAN, STD).eval()
    exported = torch.export.export(
        model, (random_images(4),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    ).module()
    for count in (1, 7):
        torch.testing.assert_close(exported(random_images(count)), model(random_images(count)))


def test_normalizes_in_single_precision_under_bf16_autocast() -> None:
    model = NormalizedModel(LeNet(channels=3, size=32, classes=10), MEAN, STD)
    images = random_images(8)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.normalize(images).dtype == torch.float32
        logits = model(images)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), model(images), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("std", [0.0, (0.25, 0.0, 0.25), -1.0, math.nan])
def test_refuses_a_deviation_that_is_not_positive(std: float | tuple[float, ...]) -> None:
    with pytest.raises(UserError, match=r"normalization\.std=.* must be positive"):
        NormalizedModel(nn.Identity(), 0.5, std)


def test_refuses_means_and_deviations_of_different_channels() -> None:
    with pytest.raises(UserError, match=r"the same number of values"):
        NormalizedModel(nn.Identity(), MEAN, (0.5, 0.5))


def resizing(net: nn.Module, size: int, new_size: int) -> NormalizedModel:
    return NormalizedModel(net, MEAN, STD, size, NetworkInput(new_size, 3, True))


@pytest.mark.parametrize(("size", "new_size"), [(32, 128), (28, 96), (37, 224), (128, 32), (96, 41), (65, 64)])
def test_resizes_like_torchs_bicubic_antialiased_interpolation(size: int, new_size: int) -> None:
    images = random_images(3, size=size)
    plain = NormalizedModel(nn.Identity(), MEAN, STD, size)(images)
    expected = nn.functional.interpolate(plain, (new_size, new_size), mode="bicubic", antialias=True)
    actual = resizing(nn.Identity(), size, new_size)(images)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def test_an_image_of_one_color_keeps_it() -> None:
    images = torch.full((1, 20, 20, 3), 200, dtype=torch.uint8)
    for new_size in (7, 64):
        resized = resizing(nn.Identity(), 20, new_size)(images)
        expected = NormalizedModel(nn.Identity(), MEAN, STD, 20)(images)[:, :, :1, :1].expand_as(resized)
        torch.testing.assert_close(resized, expected, atol=1e-5, rtol=0)


def test_the_gradient_of_each_pixel_flows_through_the_resizing() -> None:
    model = resizing(nn.Sequential(nn.Flatten(), nn.Linear(3 * 48 * 48, 2)), 16, 48)
    images = random_images(2, size=16).float().requires_grad_()
    model(images)[:, 0].sum().backward()
    assert images.grad is not None and bool((images.grad != 0).all())
    step = torch.zeros_like(images)
    step[0, 3, 5, 1] = 1.0
    with torch.no_grad():
        change = float((model(images + step) - model(images))[0, 0])
    assert change == pytest.approx(float(images.grad[0, 3, 5, 1]), abs=1e-4)


def test_images_are_resized_in_single_precision_under_bf16_autocast() -> None:
    model, images = resizing(nn.Identity(), 32, 64), random_images(2)
    with torch.autocast("cpu", torch.bfloat16):
        resized = model.normalize(images)
    assert resized.dtype == torch.float32
    assert torch.equal(resized, model.normalize(images))


def test_weights_do_not_hold_the_matrix_that_resizes() -> None:
    assert set(resizing(nn.Linear(1, 1), 32, 64).state_dict()) == {"scale", "shift", "net.weight", "net.bias"}


@pytest.mark.parametrize(("size", "new_size"), some_of([(28, 64), (64, 33)], 0))
def test_the_exported_model_resizes_too(size: int, new_size: int) -> None:
    model = resizing(tiny_network(classes=5), size, new_size).eval()
    template = OnnxTemplate.of(model, (size, size, 3), "softmax")
    session = open_checked(check_model(template.filled(model.state_dict(), {})), threads=1)
    images = random_images(9, size=size)
    with torch.inference_mode():
        expected = model(images).softmax(1).numpy()
    for count in (1, 9):
        np.testing.assert_allclose(session.predict(images.numpy()[:count], count)[1], expected[:count], atol=1e-4)


def cropping(net: nn.Module, size: int, crop: int, new_size: int) -> NormalizedModel:
    return NormalizedModel(net, MEAN, STD, size, NetworkInput(new_size, 3, True, crop))


@pytest.mark.parametrize(("size", "crop", "new_size"), [(40, 32, 32), (41, 32, 32), (64, 51, 32), (280, 224, 96)])
def test_the_network_sees_the_centre_of_larger_images(size: int, crop: int, new_size: int) -> None:
    images = random_images(3, size=size)
    margin = (size - crop) // 2
    centre = images[:, margin : margin + crop, margin : margin + crop]
    expected = resizing(nn.Identity(), crop, new_size)(centre)
    assert torch.equal(cropping(nn.Identity(), size, crop, new_size)(images), expected)


def test_images_that_an_augmentation_has_cut_to_the_networks_size_are_seen_whole() -> None:
    images = random_images(3, size=32)
    expected = NormalizedModel(nn.Identity(), MEAN, STD, 32)(images)
    assert torch.equal(cropping(nn.Identity(), 64, 51, 32)(images), expected)


def test_the_exported_model_crops_too() -> None:
    model = cropping(tiny_network(classes=5), 40, 36, 32).eval()
    template = OnnxTemplate.of(model, (40, 40, 3), "softmax")
    session = open_checked(check_model(template.filled(model.state_dict(), {})), threads=1)
    images = random_images(9, size=40)
    with torch.inference_mode():
        expected = model(images).softmax(1).numpy()
    np.testing.assert_allclose(session.predict(images.numpy(), 9)[1], expected, atol=1e-4)


CROPS: list[tuple[dict[str, Any], int, int, int | None]] = [
    # Options of the model, size of the images, expected size that the network sees, and of the crop (None: all).
    ({"input_size": 224, "crop_fraction": 0.8}, 280, 224, 224),
    ({"input_size": 224, "crop_fraction": 0.8}, 256, 224, 224),
    ({"input_size": 224, "crop_fraction": 0.8}, 224, 224, None),
    ({"input_size": 224, "crop_fraction": 0.8}, 32, 224, None),
    ({"input_size": 96, "crop_fraction": 0.8}, 280, 96, 224),
    ({"input_size": 96, "crop_fraction": 1.0}, 280, 96, None),
    ({"input_size": 96}, 280, 96, None),
    ({"input_size": None, "crop_fraction": 0.8}, 40, 40, None),
]


@pytest.mark.parametrize(("options", "size", "seen", "crop"), CROPS)
def test_the_crop_is_a_part_of_the_image_and_at_least_what_the_network_sees(
    options: dict[str, Any], size: int, seen: int, crop: int | None
) -> None:
    assert resolve_input(options, (size, size, 3), None) == NetworkInput(seen, 3, False, crop)


SIZES: list[tuple[dict[str, Any], int, int | None, int]] = [
    # Options of the model, size of the images, size that the weights were trained at, expected size.
    ({}, 32, 224, 128),
    ({}, 28, 224, 112),
    ({}, 64, 224, 224),
    ({}, 300, 224, 224),
    ({}, 8, 224, 64),
    ({}, 8, 32, 32),
    ({}, 32, 32, 32),
    ({}, 32, None, 32),
    ({"max_upscaling": 2}, 32, 224, 64),
    ({"max_upscaling": 2.5}, 32, 224, 80),
    ({"min_input_size": 160}, 32, 224, 160),
    ({"min_input_size": 300}, 32, 224, 224),
    ({"input_size": 96}, 32, 224, 96),
    ({"input_size": 300}, 32, 224, 300),
    ({"input_size": 16}, 32, 224, 16),
]


@pytest.mark.parametrize(("changes", "size", "trained", "expected"), some_of(SIZES, 0, 3, 5, -1))
def test_the_size_that_a_network_sees(
    project: Project, changes: dict[str, Any], size: int, trained: int | None, expected: int
) -> None:
    options = {**project.compose("model=timm", "model.crop_fraction=1.0").model, **changes}
    weights = PretrainedWeights("default", "drawn", "0", {}, input_size=trained)
    assert resolve_input(options, (size, size, 3), weights) == NetworkInput(expected, 3, True)


@pytest.mark.parametrize(("changes", "expected"), [({}, 32), ({"input_size": 96}, 96)])
def test_a_network_without_pretrained_weights_sees_the_images_as_they_are(
    project: Project, changes: dict[str, Any], expected: int
) -> None:
    options = {**project.compose("model=timm").model, **changes}
    assert resolve_input(options, (32, 32, 3), None) == NetworkInput(expected, 3, False)


@pytest.mark.parametrize(
    ("overrides", "size"),
    [
        ([], 32),
        (["model=timm"], 32),
        (["model=timm", "model.weights=default"], 280),
        (["model=timm", "model.name=efficientnet_b0", "model.weights=default"], 280),
        (["model=torchvision", "model.name=efficientnet_b4", "model.weights=default"], 475),
        (["model=timm", "model.weights=default", "model.input_size=96"], 120),
        (["model=timm", "model.input_size=64"], 80),
        (["model=lenet", "model.weights=net.pth"], 32),
        (["experiment=finetune"], 280),
        (["experiment=finetune", "data.size=100"], 100),
    ],
)
def test_images_are_stored_a_fourth_larger_than_the_network_sees_them(
    project: Project, overrides: list[str], size: int
) -> None:
    assert project.compose("data=image_folder", *overrides).data.size == size


def test_a_network_without_published_weights_is_refused_when_the_size_is_read(project: Project) -> None:
    overrides = ("data=image_folder", "model=timm", "model.name=efficientnet_b6", "model.weights=default")
    project.start(configure, *overrides).assert_refused("timm publishes none for it; choose efficientnet_b5 or")
    assert not Path("composed.yaml").exists()
