"""Integrated gradients against what they must be: the formula where there is one, the axiom where there is none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import CLASSES, SHAPE, network, pictures
from torch import Tensor, nn

from cifar_pipeline.inference.attribution import attributions, on_floats
from cifar_pipeline.inference.export import load_model
from cifar_pipeline.inference.probabilities import softmax
from cifar_pipeline.models.pixels import RawPixels

GREY = [0.5, 0.4, 0.3]
NAMED = np.array([3, 0, 7])


class Linear(nn.Module):
    """Of a linear network each pixel's share is its weight times its distance from the baseline."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(SHAPE)), len(CLASSES)))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


def unchanged(logits: Tensor) -> Tensor:
    return logits


def test_attributions_of_a_linear_network_are_weight_times_distance() -> None:
    net, images = Linear(), pictures(3)
    found = attributions(RawPixels(net, 0.5, 0.25), unchanged, images, NAMED, GREY)
    assert found is not None and found.shape == (3, *SHAPE[:2])
    weights = net.layers[1].weight.detach().numpy()[NAMED].reshape(3, 3, *SHAPE[:2]).transpose(0, 2, 3, 1)
    expected = (weights * (images / 255 - np.array(GREY)) / 0.25).sum(axis=3)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_attributions_add_up_to_the_probability_less_that_of_the_baseline(exported: Path) -> None:
    model, images = load_model(exported), pictures(3)
    found = attributions(model, softmax, images, NAMED, GREY)
    assert found is not None
    floats = on_floats(model)
    baseline = (torch.tensor(GREY) * 255).expand(1, *SHAPE)
    with torch.no_grad():
        gained = softmax(floats(torch.from_numpy(images).float())) - softmax(floats(baseline))
    np.testing.assert_allclose(found.sum(axis=(1, 2)), gained[range(3), NAMED].numpy(), atol=1e-4)
    # An untrained network's answers hardly differ: there must be something to add up.
    assert np.abs(found).sum() > 100 * 1e-4


def test_an_exported_network_has_the_attributions_of_the_one_in_training(exported: Path) -> None:
    images = pictures(3)
    loaded = attributions(load_model(exported), softmax, images, NAMED, GREY)
    trained = attributions(network().eval(), softmax, images, NAMED, GREY)
    assert loaded is not None and trained is not None
    np.testing.assert_allclose(loaded, trained, atol=1e-6)


def test_attributions_leave_the_model_as_it_was(exported: Path) -> None:
    model, images = load_model(exported), pictures(2)
    before = model(torch.from_numpy(images))
    attributions(model, softmax, images, NAMED[:2], GREY)
    assert torch.equal(model(torch.from_numpy(images)), before)
    with pytest.raises(Exception, match="Expected: Byte"):
        model(torch.from_numpy(images).float())


class Deciding(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return (images.mean(dim=(1, 2)) > 127).float()


def test_a_network_without_gradients_has_no_attributions() -> None:
    assert attributions(Deciding(), softmax, pictures(2), NAMED[:2], GREY) is None


def test_no_pictures_have_no_attributions() -> None:
    assert attributions(network(), softmax, pictures(0), NAMED[:0], GREY) is None
