"""Test the airbench network: whitening, initialization, stages."""

import pytest
import torch
from torch import Tensor, nn

from cifar_pipeline.models.airbench import AirbenchNet, BiasOnlyBatchNorm2d, Stage
from cifar_pipeline.utils.errors import UserError


def random_images(count: int = 400) -> Tensor:
    """Smooth noise, in which neighboring pixels are alike as in photographs."""
    torch.manual_seed(0)
    return nn.functional.avg_pool2d(torch.randn(count, 3, 36, 36), 5, 1) * 4


def test_whitening_gives_uncorrelated_outputs_of_variance_one() -> None:
    net, images = AirbenchNet(3, 32, 10), random_images()
    net.initialize(images)
    outputs = nn.functional.conv2d(images, net.whitening).transpose(0, 1).flatten(1)
    half = len(outputs) // 2
    torch.testing.assert_close(outputs[half:], -outputs[:half])
    covariance = outputs[:half] @ outputs[:half].T / outputs.shape[1]
    # Directions of almost no variance are not amplified.
    assert torch.allclose(covariance - covariance.diag().diag(), torch.zeros(half, half), atol=1e-2)
    assert 0.9 < covariance.diag().max() < 1.1


@pytest.mark.parametrize(("depth", "channels", "size", "classes"), [(2, 3, 32, 10), (3, 1, 28, 5), (1, 3, 9, 2)])
def test_airbench_takes_any_depth_channels_size_and_classes(depth: int, channels: int, size: int, classes: int) -> None:
    net = AirbenchNet(channels, size, classes, widths=(8, 8, 12), depth=depth)
    logits = net(torch.randn(4, channels, size, size))
    assert logits.shape == (4, classes)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert not any(name == "whitening" or ("norm" in name and "weight" in name) for name, _ in net.named_parameters())


def test_a_convolution_is_initialized_to_the_identity() -> None:
    stage = Stage(4, 8, depth=2, norm_momentum=0.1)
    images = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(stage.convolutions[0](images)[:, :4], images)


def test_three_or_more_convolutions_have_a_residual_connection() -> None:
    stage = Stage(4, 4, depth=3, norm_momentum=0.1).eval()
    images = torch.randn(2, 4, 8, 8)
    first = nn.functional.gelu(stage.norms[0](nn.functional.max_pool2d(stage.convolutions[0](images), 2)))
    inner = nn.functional.gelu(stage.norms[1](stage.convolutions[1](first)))
    expected = nn.functional.gelu(stage.norms[2](stage.convolutions[2](inner)) + first)
    torch.testing.assert_close(stage(images), expected)


def test_batch_norm_learns_a_bias_but_no_scale() -> None:
    norm, usual = BiasOnlyBatchNorm2d(6, momentum=0.3), nn.BatchNorm2d(6, momentum=0.3)
    images = torch.randn(5, 6, 4, 4) * 3 + 1
    torch.testing.assert_close(norm(images), usual(images))
    torch.testing.assert_close(norm.eval()(images), usual.eval()(images))
    assert [name for name, _ in norm.named_parameters()] == ["bias"]


@pytest.mark.parametrize(("size", "widths", "message"), [(8, (64, 64, 64), "at least 9x9"), (32, (), "at least one")])
def test_invalid_widths_are_refused(size: int, widths: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AirbenchNet(3, size, 10, widths)
