"""Networks of conf/model take grey and colour images of usual sizes, or say which they take."""

from typing import Any

import pytest
import torch
from hydra.utils import instantiate

from cifar_pipeline.config.compose import compose_config
from cifar_pipeline.config.validation import find_user_error
from helpers.config_project import Project, options_of

# The smallest images of each, in pixels.
SMALLEST = {"lenet": 16, "airbench": 9, "airbench_wide": 9}
ELSEWHERE = {"torchvision", "timm"}  # test_zoo.py


def network(model: str, channels: int, size: int) -> Any:
    return instantiate(compose_config([f"model={model}"]).model, channels=channels, size=size, classes=3)


@pytest.mark.parametrize("model", SMALLEST)
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 64)])
def test_networks_take_grey_and_colour_images_of_usual_sizes(
    project: Project, model: str, channels: int, size: int
) -> None:
    assert {*SMALLEST, *ELSEWHERE} == set(options_of("model"))
    logits = network(model, channels, size)(torch.randn(2, channels, size, size))
    logits.sum().backward()
    assert logits.shape == (2, 3)


@pytest.mark.parametrize(("model", "smallest"), SMALLEST.items())
def test_images_that_are_too_small_are_refused_with_the_smallest_that_will_do(
    project: Project, model: str, smallest: int
) -> None:
    network(model, 1, smallest)
    with pytest.raises(Exception) as raised:
        network(model, 1, smallest - 1)
    assert f"images of at least {smallest}x{smallest} pixels" in str(find_user_error(raised.value))
