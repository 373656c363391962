"""An optimizer as conf/optimizer/ describes it: a torch optimizer's arguments, and `full_batch`."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn
from torch.optim import Optimizer

from cifar_pipeline.config.targets import arguments
from cifar_pipeline.console import Refusal


@dataclass(frozen=True)
class OptimizerChoice:
    """How to build the optimizer, and whether a step is taken over the whole train part (`full_batch`)."""

    build: Callable[[Iterable[nn.Parameter]], Optimizer]
    full_batch: bool


def choose_optimizer(options: Mapping[str, Any]) -> OptimizerChoice:
    """Split `options` into the constructor's arguments and `full_batch`.

    Raises `Refusal` with torch's own reason where the values don't go together.
    """
    try:
        build = instantiate(arguments(options, "optimizer"), _convert_="all")
        build([nn.Parameter()])
    except (InstantiationException, ValueError, TypeError) as error:
        raise Refusal(f"optimizer: {' '.join(str(error).split())}") from None
    return OptimizerChoice(build, bool(options.get("full_batch", False)))
