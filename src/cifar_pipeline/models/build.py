"""Build the network that the configuration describes. Imports no Lightning: `evaluate` uses it as well."""

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.models.wrappers import NormalizedModel, TestTimeAugmentation
from cifar_pipeline.utils.errors import UserError


class DatasetShape(Protocol):
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


def build_model(config: DictConfig, dataset: Dataset) -> NormalizedModel:
    """The network with new weights behind its normalisation.

    A network that has a method `initialize` is shown the first training images, normalised: `[N, C, H, W] float`.
    """
    pixels = build_bare_model(config, dataset)
    initialize: Any = getattr(pixels.net, "initialize", None)
    if initialize is not None:
        images, _ = dataset.split("train")
        initialize(pixels.normalize(torch.from_numpy(images[: config.trainer.eval_batch_size])))
    return pixels


def build_bare_model(config: DictConfig, dataset: DatasetShape) -> NormalizedModel:
    """The network behind its normalisation, for weights that are loaded into it.

    Channels, size and classes come from the data set.
    """
    size, width, channels = dataset.shape
    if size != width:
        raise UserError(
            f"The images of {dataset.title} are {width} wide and {size} high, and the networks take square ones: "
            "let the source yield images of one height and width."
        )
    net = instantiate(config.model, channels=channels, size=size, classes=len(dataset.classes))
    mean = dataset.mean if config.normalization.mean is None else config.normalization.mean
    std = dataset.std if config.normalization.std is None else config.normalization.std
    for name, numbers in (("mean", mean), ("std", std)):
        if isinstance(numbers, Sequence) and len(numbers) not in (1, channels):
            raise UserError(
                f"normalization.{name}={list(numbers)} has {len(numbers)} numbers, but the images of {dataset.title} have "
                f"{channels} channels: write one number, or {channels}."
            )
    return NormalizedModel(net, mean, std)


def build_inference_model(net: nn.Module, config: DictConfig, dataset: DatasetShape) -> NormalizedModel:
    """A copy of the trained network as it is exported: with the views that conf/tta chose, raw images to logits."""
    deployed = copy.deepcopy(net)
    assert isinstance(deployed, NormalizedModel)
    if config.tta.flip or config.tta.shift:
        deployed.net = TestTimeAugmentation(deployed.net, config.tta.flip, config.tta.shift, min(dataset.shape[:2]))
    return deployed
