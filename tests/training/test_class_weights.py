"""Class weights: every loss of conf/ weights its images by class, on both engines."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from cifar_pipeline.training.compiled import step
from cifar_pipeline.training.compiled.step import CompiledSteps
from cifar_pipeline.training.losses import build_loss
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import ROOT, options_of

LOSSES = options_of("loss", own=True)
COUNTS = (8, 1, 3)


def dataset(counts: tuple[int, ...] = COUNTS) -> Any:
    """A stand-in for the dataset, whose train split has `counts` images of each class."""
    labels = np.repeat(np.arange(len(counts)), counts)
    return SimpleNamespace(title="pets", classes=("cat", "dog", "eel"), split=lambda _: (None, labels))


def loss(name: str, weights: Any, counts: tuple[int, ...] = COUNTS) -> nn.Module:
    options: Any = OmegaConf.load(ROOT / "conf" / "loss" / f"{name}.yaml")
    options.class_weights = weights
    return build_loss(options, dataset(counts))


def batch(images: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(images, 3, generator=generator), torch.randint(0, 3, (images,), generator=generator)


@pytest.mark.parametrize("name", LOSSES)
def test_an_images_loss_is_multiplied_by_its_classs_weight(name: str) -> None:
    logits, labels = batch()
    unweighted = torch.stack([loss(name, None)(logits[i : i + 1], labels[i : i + 1]) for i in range(len(labels))])
    weights = torch.tensor([0.5, 4.0, 1.0])
    torch.testing.assert_close(loss(name, weights.tolist())(logits, labels), (weights[labels] * unweighted).mean())


def test_balanced_classes_count_alike_and_an_image_counts_one_in_the_mean() -> None:
    weights = loss("cross_entropy", "balanced").get_buffer("weights")
    sums = weights * torch.tensor(COUNTS)
    torch.testing.assert_close(sums, torch.full((3,), sum(COUNTS) / 3))


def test_no_weights_are_the_loss_itself_and_none_go_into_a_checkpoint() -> None:
    assert isinstance(loss("cross_entropy", None), nn.CrossEntropyLoss)
    assert not loss("cross_entropy", "balanced").state_dict()


def test_a_custom_loss_needs_no_class_weights_key() -> None:
    options = OmegaConf.create({"_target_": "torch.nn.MultiMarginLoss", "output_activation": "softmax"})
    assert isinstance(build_loss(options, dataset()), nn.MultiMarginLoss)


@pytest.mark.parametrize("name", LOSSES)
def test_compiled_steps_use_class_weights_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "compile_graph", lambda graph, arguments: graph)
    images = torch.randint(0, 256, (4, 5, 2, 2, 1), generator=torch.Generator().manual_seed(0)).float()
    labels = torch.randint(0, 3, (4, 5), generator=torch.Generator().manual_seed(1))

    def train(compiled: bool) -> Tensor:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        optimizer, weighted = torch.optim.SGD(net.parameters(), lr=1e-5), loss(name, "balanced")
        if compiled:
            CompiledSteps(net, weighted, optimizer, 2)(images, labels, torch.full((4, 1), 1e-5))
        else:
            for step_images, step_labels in zip(images, labels, strict=True):
                optimizer.zero_grad()
                weighted(net(step_images), step_labels).backward()
                optimizer.step()
        return net[1].weight.detach()

    torch.testing.assert_close(train(compiled=True), train(compiled=False))


class Unreduced(nn.Module):
    """A loss that only returns a mean."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits.mean()


@pytest.mark.parametrize(
    ("weights", "counts", "message"),
    [
        ([1.0, 2.0], COUNTS, r"has 2 numbers, but pets has 3 classes \(cat, dog, eel\)"),
        ("balanced", (4, 0, 2), "the class dog has no training images"),
    ],
)
def test_class_weights_that_do_not_match_the_classes_are_refused(
    weights: Any, counts: tuple[int, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        loss("mse", weights, counts)


def test_class_weights_of_a_loss_without_reduction_are_refused() -> None:
    options = OmegaConf.create({"_target_": f"{__name__}.Unreduced", "class_weights": "balanced"})
    with pytest.raises(UserError, match="needs a loss that takes `reduction`"):
        build_loss(options, dataset())
