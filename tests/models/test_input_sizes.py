"""Test that the networks of conf/model accept gray and color images of usual sizes, or name the smallest."""

from typing import Any

import pytest
import torch
from hydra.utils import instantiate

from cifar_pipeline.config.compose import compose_config
from cifar_pipeline.config.validation import find_user_error, target_config
from helpers.config_project import Project, options_of

# Height and width in pixels of the smallest images of each.
MIN_SIZES = {"lenet": 16, "airbench": 9, "airbench_wide": 9}
TESTED_ELSEWHERE = {"torchvision", "timm"}  # test_zoo.py


def network(model: str, channels: int, size: int) -> Any:
    options = target_config(compose_config([f"model={model}"]).model, "model")
    return instantiate(options, channels=channels, size=size, classes=3)


@pytest.mark.parametrize("model", MIN_SIZES)
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 64)])
def test_networks_take_gray_and_color_images_of_usual_sizes(
    project: Project, model: str, channels: int, size: int
) -> None:
    assert {*MIN_SIZES, *TESTED_ELSEWHERE} == set(options_of("model"))
    logits = network(model, channels, size)(torch.randn(2, channels, size, size))
    logits.sum().backward()
    assert logits.shape == (2, 3)


@pytest.mark.parametrize(("model", "min_size"), MIN_SIZES.items())
def test_images_that_are_too_small_are_refused_with_the_smallest_size(
    project: Project, model: str, min_size: int
) -> None:
    network(model, 1, min_size)
    with pytest.raises(Exception) as raised:
        network(model, 1, min_size - 1)
    assert f"images of at least {min_size}x{min_size} pixels" in str(find_user_error(raised.value))
