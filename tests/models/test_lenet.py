"""Test LeNet against the network of PyTorch's tutorial."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_pipeline.models.lenet import LeNet
from cifar_pipeline.utils.errors import UserError


class Tutorial(nn.Module):
    """`Net` of pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        x = self.fc3(x)
        return x


def test_same_logits_as_the_tutorial_with_the_tutorials_weights() -> None:
    torch.manual_seed(0)
    tutorial, ours = Tutorial(), LeNet(channels=3, size=32, classes=10)
    ours.load_state_dict(tutorial.state_dict())
    images = torch.randn(5, 3, 32, 32)
    assert torch.equal(ours(images), tutorial(images))


def test_starts_from_the_tutorials_weights_for_a_seed() -> None:
    torch.manual_seed(7)
    tutorial = Tutorial().state_dict()
    torch.manual_seed(7)
    ours = LeNet(channels=3, size=32, classes=10).state_dict()
    assert list(ours) == list(tutorial)
    assert all(torch.equal(ours[name], tutorial[name]) for name in tutorial)


def test_has_62006_parameters_on_cifar10() -> None:
    assert sum(weights.numel() for weights in LeNet(channels=3, size=32, classes=10).parameters()) == 62_006


@pytest.mark.parametrize(
    ("channels", "size", "classes"), [(3, 32, 10), (1, 28, 10), (3, 16, 100), (4, 33, 2), (3, 64, 7)]
)
def test_takes_its_shapes_from_the_data(channels: int, size: int, classes: int) -> None:
    net = LeNet(channels=channels, size=size, classes=classes)
    assert net(torch.randn(2, channels, size, size)).shape == (2, classes)


def test_refuses_images_that_are_too_small() -> None:
    with pytest.raises(UserError, match=r"model=lenet needs images of at least 16x16 pixels, but these are 15x15"):
        LeNet(channels=3, size=15, classes=10)
