"""An optimizer as conf/optimizer/ describes it: a torch optimizer's arguments, and `full_batch`."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hydra.utils import instantiate
from torch import nn
from torch.optim import Optimizer

from cifar_pipeline.config.targets import arguments


@dataclass(frozen=True)
class OptimizerChoice:
    """How to build the optimizer, and whether a step is taken over the whole train part (`full_batch`)."""

    build: Callable[[Iterable[nn.Parameter]], Optimizer]
    full_batch: bool


def choose_optimizer(options: Mapping[str, Any]) -> OptimizerChoice:
    """Split `options` into the constructor's arguments and `full_batch`."""
    build = instantiate(arguments(options, "optimizer"), _convert_="all")
    return OptimizerChoice(build, bool(options.get("full_batch", False)))
