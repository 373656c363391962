"""From the configuration and the data set to what Lightning trains, before any work is done."""

from collections.abc import Callable
from functools import partial

from hydra.utils import get_method, instantiate
from lightning.pytorch import Callback, seed_everything
from omegaconf import DictConfig

from cifar_pipeline.config.targets import arguments
from cifar_pipeline.console import Refusal
from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.training.class_weights import build_loss
from cifar_pipeline.training.datamodule import Pictures
from cifar_pipeline.training.engines.block_module import BlockClassifier
from cifar_pipeline.training.engines.choice import PLAIN, Engine
from cifar_pipeline.training.fit import Plan
from cifar_pipeline.training.folder import TrainingFolder
from cifar_pipeline.training.hardware import Hardware
from cifar_pipeline.training.module import Classifier, Schedule
from cifar_pipeline.training.networks import build_network
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
