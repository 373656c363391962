"""Several looks at an image: the mean over all of them, whatever the network."""

import pytest
import torch
from torch import Tensor, nn

from cifar_pipeline.models.wrappers import TestTimeAugmentation
from cifar_pipeline.utils.errors import UserError


class Weighted(nn.Module):
    """Logits that tell every pixel apart."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(3 * size**2, 4))

    def forward(self, images: Tensor) -> Tensor:
        return torch.tanh(images.flatten(1) @ self.weights)


def shifted(images: Tensor, pixels: int) -> Tensor:
    """Moved down and right by so many pixels (negative: up and left), the rim reflected."""
    size, reach = images.shape[2], abs(pixels)
    padded = nn.functional.pad(images, [reach] * 4, mode="reflect")
    start = reach - pixels
    return padded[:, :, start : start + size, start : start + size]


def test_six_views_count_as_the_recipe_says() -> None:
    torch.manual_seed(0)
    net, images = Weighted(6), torch.randn(5, 3, 6, 6)
    expected = torch.zeros(5, 4)
    for pixels, weight in ((0, 0.5), (1, 0.25), (-1, 0.25)):
        view = shifted(images, pixels)
        expected += weight * (net(view) + net(view.flip(3))) / 2
    torch.testing.assert_close(TestTimeAugmentation(net, flip=True, shift=1, size=6)(images), expected)


def test_mirror_images_are_answered_alike() -> None:
    net, images = TestTimeAugmentation(Weighted(6), flip=True, shift=0, size=6), torch.randn(5, 3, 6, 6)
    torch.testing.assert_close(net(images), net(images.flip(3)))


def test_one_view_is_the_network_itself() -> None:
    net, images = Weighted(6), torch.randn(5, 3, 6, 6)
    assert torch.equal(TestTimeAugmentation(net, flip=False, shift=0, size=6)(images), net(images))


def test_a_shift_beyond_the_image_is_refused() -> None:
    with pytest.raises(UserError, match=r"tta\.shift=6 must be smaller"):
        TestTimeAugmentation(Weighted(6), flip=True, shift=6, size=6)
