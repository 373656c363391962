"""Build the network that the configuration describes. Imports no Lightning: `evaluate` uses it as well."""

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from cifar_pipeline.console import Refusal
from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.models.pixels import RawPixels
from cifar_pipeline.models.views import Views


class PictureSet(Protocol):
    """What a network has to know of a data set: `shape` is [H, W, C], `mean` and `std` are of pixels in [0, 1]."""

    @property
    def title(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...


def build_network(config: DictConfig, dataset: Dataset) -> RawPixels:
    """The network with new weights behind its normalisation.

    A network that has a method `initialize` is shown the first training images, normalised: `[N, C, H, W] float`.
    """
    pixels = bare_network(config, dataset)
    initialize: Any = getattr(pixels.net, "initialize", None)
    if initialize is not None:
        images, _ = dataset.part("train")
        initialize(pixels.normalise(torch.from_numpy(images[: config.trainer.eval_batch_size])))
    return pixels


def bare_network(config: DictConfig, dataset: PictureSet) -> RawPixels:
    """The network behind its normalisation, for weights that are loaded into it.

    Channels, size and classes come from the data set.
    """
    size, width, channels = dataset.shape
    if size != width:
        raise Refusal(
            f"The images of {dataset.title} are {width} wide and {size} high, and the networks take square ones: "
            "let the source yield images of one height and width."
        )
    net = instantiate(config.model, channels=channels, size=size, classes=len(dataset.classes))
    mean = dataset.mean if config.normalize.mean is None else config.normalize.mean
    std = dataset.std if config.normalize.std is None else config.normalize.std
    for name, numbers in (("mean", mean), ("std", std)):
        if isinstance(numbers, Sequence) and len(numbers) not in (1, channels):
            raise Refusal(
                f"normalize.{name}={list(numbers)} has {len(numbers)} numbers, but the images of {dataset.title} have "
                f"{channels} channels: write one number, or {channels}."
            )
    return RawPixels(net, mean, std)


def build_deployed(net: nn.Module, config: DictConfig, dataset: PictureSet) -> RawPixels:
    """A copy of the trained network as it is exported: with the views that conf/views chose, raw pictures to logits."""
    deployed = copy.deepcopy(net)
    assert isinstance(deployed, RawPixels)
    if config.views.flip or config.views.shift:
        deployed.net = Views(deployed.net, config.views.flip, config.views.shift, min(dataset.shape[:2]))
    return deployed
