"""Test the input normalization of NormalizedModel."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cifar_pipeline.models.build import NormalizedModel
from cifar_pipeline.models.lenet import LeNet
from cifar_pipeline.utils.errors import UserError

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
