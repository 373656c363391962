"""Test the averaging of logits over augmented copies."""

import pytest
import torch
from torch import Tensor, nn

from cifar_pipeline.models.build import TestTimeAugmentation
from cifar_pipeline.utils.errors import UserError


class Weighted(nn.Module):
    """Compute logits that depend on every pixel."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(3 * size**2, 4))

    def forward(self, images: Tensor) -> Tensor:
        return torch.tanh(images.flatten(1) @ self.weights)


def shifted(images: Tensor, pixels: int) -> Tensor:
    """Shift down and right (negative `pixels`: up and left), with reflected borders."""
    size, margin = images.shape[2], abs(pixels)
    padded = nn.functional.pad(images, [margin] * 4, mode="reflect")
    start = margin - pixels
    return padded[:, :, start : start + size, start : start + size]


def test_six_copies_have_the_weights_of_airbench() -> None:
    torch.manual_seed(0)
    net, images = Weighted(6), torch.randn(5, 3, 6, 6)
    expected = torch.zeros(5, 4)
    for pixels, weight in ((0, 0.5), (1, 0.25), (-1, 0.25)):
        copy = shifted(images, pixels)
        expected += weight * (net(copy) + net(copy.flip(3))) / 2
    torch.testing.assert_close(TestTimeAugmentation(net, flip=True, shift=1, size=6)(images), expected)


def test_flipped_images_get_the_same_logits() -> None:
    net, images = TestTimeAugmentation(Weighted(6), flip=True, shift=0, size=6), torch.randn(5, 3, 6, 6)
    torch.testing.assert_close(net(images), net(images.flip(3)))


def test_without_augmentation_the_logits_are_the_networks() -> None:
    net, images = Weighted(6), torch.randn(5, 3, 6, 6)
    assert torch.equal(TestTimeAugmentation(net, flip=False, shift=0, size=6)(images), net(images))


def test_a_shift_beyond_the_image_is_refused() -> None:
    with pytest.raises(UserError, match=r"tta\.shift=6 must be smaller"):
        TestTimeAugmentation(Weighted(6), flip=True, shift=6, size=6)
