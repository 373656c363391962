"""From the configuration and the data set to what Lightning trains, before any work is done."""

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from hydra.utils import get_method, instantiate
from lightning.pytorch import Callback, seed_everything
from omegaconf import DictConfig
from torch import nn

from cifar_pipeline.config.targets import arguments
from cifar_pipeline.console import Refusal
from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.models.pixels import RawPixels
from cifar_pipeline.models.views import Views
from cifar_pipeline.training.class_weights import build_loss
from cifar_pipeline.training.datamodule import Pictures
from cifar_pipeline.training.engines.block_module import BlockClassifier
from cifar_pipeline.training.engines.choice import PLAIN, Engine
from cifar_pipeline.training.fit import Plan
from cifar_pipeline.training.folder import TrainingFolder
from cifar_pipeline.training.hardware import Hardware
from cifar_pipeline.training.module import Classifier, Schedule
from cifar_pipeline.training.optimizers import choose_optimizer
from cifar_pipeline.training.processes import Processes


def build_plan(
    config: DictConfig,
    dataset: Dataset,
    hardware: Hardware,
    engine: Engine,
    folder: TrainingFolder,
    processes: Processes,
) -> Plan:
    """All that the training needs."""
    return Plan(
        module=build_module(config, dataset, engine),
        pictures=build_pictures(config, dataset, engine),
        options=config.trainer,
        hardware=hardware,
        folder=folder,
        average=build_average(config),
        processes=processes,
        checkpoint_every=config.machine.checkpoint_every,
        profiler=config.machine.profiler,
    )


def build_module(config: DictConfig, dataset: Dataset, engine: Engine = PLAIN) -> Classifier:
    """The network with new weights that follow from the seed, its loss, optimizer and schedule."""
    seed_everything(config.seed, verbose=False)
    kind: Callable[..., Classifier] = Classifier
    if engine.is_block:
        kind = partial(BlockClassifier, block_steps=engine.block_steps, chunk_steps=engine.chunk_steps)
    return kind(
        build_network(config, dataset),
        build_loss(config.loss, dataset),
        choose_optimizer(config.optimizer),
        build_schedule(config),
        config.seed,
    )


def build_schedule(config: DictConfig) -> Schedule:
    """The function (step, all steps) -> factor, bare: what Hydra makes takes a tenth of a millisecond a call."""
    values = arguments(config.schedule, "schedule")
    return partial(get_method(values.pop("_target_")), **{key: values[key] for key in values if key != "_partial_"})


def build_average(config: DictConfig) -> Callback | None:
    """Lightning's callback that keeps the average of the weights that conf/average chose, if it chose one."""
    average: Callback | None = instantiate(arguments(config.average, "average"))
    return average


def build_network(config: DictConfig, dataset: Dataset) -> RawPixels:
    """The network behind its normalisation; channels, size and classes come from the data set.

    A network that has a method `initialize` is shown the first training images, normalised: `[N, C, H, W] float`.
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
    pixels = RawPixels(net, mean, std)
    if hasattr(net, "initialize"):
        images, _ = dataset.part("train")
        net.initialize(pixels.normalise(torch.from_numpy(images[: config.trainer.eval_batch_size])))
    return pixels


def build_deployed(net: nn.Module, config: DictConfig, dataset: Dataset) -> nn.Module:
    """A copy of the trained network as it is exported: with the views that conf/views chose, raw pictures to logits."""
    deployed = copy.deepcopy(net)
    assert isinstance(deployed, RawPixels)
    if config.views.flip or config.views.shift:
        deployed.net = Views(deployed.net, config.views.flip, config.views.shift, min(dataset.shape[:2]))
    return deployed


def step_images(config: DictConfig) -> int:
    """How many images go through the network at once in training: a batch, or a part of it.

    Raises `Refusal` where a batch has no whole number of parts.
    """
    batch_size, part = config.trainer.batch_size, config.trainer.micro_batch_size
    if config.optimizer.get("full_batch"):
        return int(part or config.trainer.eval_batch_size)
    if part and batch_size > part and batch_size % part:
        raise Refusal(
            f"trainer.micro_batch_size={part} does not divide trainer.batch_size={batch_size}: write one that does, or "
            "null."
        )
    return int(min(part or batch_size, batch_size))


def build_pictures(config: DictConfig, dataset: Dataset, engine: Engine = PLAIN) -> Pictures:
    """The batches: of the size that conf/trainer says or, for a full batch, in parts that fit into memory."""
    batch_size = step_images(config)
    if config.optimizer.get("full_batch"):
        batch_size = min(batch_size, dataset.sizes["train"])
    chunk = engine.chunk_steps if engine.is_block else 0
    return Pictures(
        dataset, batch_size, config.trainer.eval_batch_size, instantiate(config.augment), config.seed, chunk
    )
