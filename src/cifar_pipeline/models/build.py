"""Build the configured network, its input normalization and test-time augmentation, without importing Lightning."""

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
    """Properties of a dataset that a network needs: `shape` is `(H, W, C)`; `mean`, `std` are of pixels in [0, 1]."""

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
    """Build the network with new weights, preceded by input normalization.

    If the network has a method `initialize`, call it with the first training images, normalized: `[N, C, H, W] float`.
    """
    model = build_bare_model(config, dataset)
    initialize: Any = getattr(model.net, "initialize", None)
    if initialize is not None:
        images, _ = dataset.split("train")
        initialize(model.normalize(torch.from_numpy(images[: config.trainer.eval_batch_size])))
    return model


def build_bare_model(config: DictConfig, dataset: DatasetShape) -> NormalizedModel:
    """Build the network preceded by input normalization, without calling its `initialize`: for weights to be loaded.

    Raises:
        UserError: the images are not square, or the normalization has another number of channels.
    """
    size, width, channels = dataset.shape
    if size != width:
        raise UserError(
            f"The images of {dataset.title} are {width} wide and {size} high, but the networks take square images. "
            "Let the data source yield images of equal height and width."
        )
    net = instantiate(config.model, channels=channels, size=size, classes=len(dataset.classes))
    mean = dataset.mean if config.normalization.mean is None else config.normalization.mean
    std = dataset.std if config.normalization.std is None else config.normalization.std
    for name, numbers in (("mean", mean), ("std", std)):
        if isinstance(numbers, Sequence) and len(numbers) not in (1, channels):
            raise UserError(
                f"normalization.{name}={list(numbers)} has {len(numbers)} numbers, but the images of {dataset.title} "
                f"have {channels} channels. Write one number or {channels}."
            )
    return NormalizedModel(net, mean, std)


def build_inference_model(net: nn.Module, config: DictConfig, dataset: DatasetShape) -> NormalizedModel:
    """Copy the trained network and add the test-time augmentation of conf/tta, as it is exported."""
    inference_model = copy.deepcopy(net)
    assert isinstance(inference_model, NormalizedModel)
    if config.tta.flip or config.tta.shift:
        size = min(dataset.shape[:2])
        inference_model.net = TestTimeAugmentation(inference_model.net, config.tta.flip, config.tta.shift, size)
    return inference_model
