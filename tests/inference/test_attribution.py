"""Test integrated gradients against the formula for linear networks and the completeness axiom for others."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import CLASSES, SHAPE, network, random_images
from torch import Tensor, nn

from cifar_pipeline.inference.torch_model import attributions
from cifar_pipeline.models.build import NormalizedModel, load_weights, softmax
from cifar_pipeline.utils.paths import WEIGHTS_FILE

GRAY = [0.5, 0.4, 0.3]
CLASS_INDICES = np.array([3, 0, 7])


class Linear(nn.Module):
    """A linear network: the attribution of a pixel is its weight times its distance from the baseline."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(SHAPE)), len(CLASSES)))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


@pytest.fixture
def loaded(exported: Path) -> NormalizedModel:
    """Load the weights of a model folder into the network."""
    net = network()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    load_weights(net, (exported / WEIGHTS_FILE).read_bytes(), exported / WEIGHTS_FILE)
    return net.eval()


def identity(logits: Tensor) -> Tensor:
    return logits


def test_attributions_of_a_linear_network_are_weight_times_distance() -> None:
    net, images = Linear(), random_images(3)
    maps = attributions(NormalizedModel(net, 0.5, 0.25), identity, images, CLASS_INDICES, GRAY)
    assert maps is not None and maps.shape == (3, *SHAPE[:2])
    weights = net.layers[1].weight.detach().numpy()[CLASS_INDICES].reshape(3, 3, *SHAPE[:2]).transpose(0, 2, 3, 1)
    expected = (weights * (images / 255 - np.array(GRAY)) / 0.25).sum(axis=3)
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-5)


def test_attributions_add_up_to_the_probability_less_that_of_the_baseline(loaded: NormalizedModel) -> None:
    images = random_images(3)
    maps = attributions(loaded, softmax, images, CLASS_INDICES, GRAY)
    assert maps is not None
    baseline = (torch.tensor(GRAY) * 255).expand(1, *SHAPE)
    with torch.no_grad():
        difference = softmax(loaded(torch.from_numpy(images).float())) - softmax(loaded(baseline))
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), difference[range(3), CLASS_INDICES].numpy(), atol=1e-4)
    # An untrained network's predictions hardly differ: make sure that the sums are not trivial.
    assert np.abs(maps).sum() > 100 * 1e-4


def test_the_weights_in_a_model_folder_have_the_attributions_of_the_network_in_training(
    loaded: NormalizedModel,
) -> None:
    images = random_images(3)
    maps = attributions(loaded, softmax, images, CLASS_INDICES, GRAY)
    trained = attributions(network().eval(), softmax, images, CLASS_INDICES, GRAY)
    assert maps is not None and trained is not None
    np.testing.assert_allclose(maps, trained, atol=1e-6)


def test_attributions_leave_the_model_as_it_was(loaded: NormalizedModel) -> None:
    images = random_images(2)
    before = loaded(torch.from_numpy(images))
    attributions(loaded, softmax, images, CLASS_INDICES[:2], GRAY)
    assert torch.equal(loaded(torch.from_numpy(images)), before)


class NotDifferentiable(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return (images.mean(dim=(1, 2)) > 127).float()


def test_a_network_without_gradients_has_no_attributions() -> None:
    assert attributions(NotDifferentiable(), softmax, random_images(2), CLASS_INDICES[:2], GRAY) is None


def test_no_images_have_no_attributions() -> None:
    assert attributions(network(), softmax, random_images(0), CLASS_INDICES[:0], GRAY) is None
