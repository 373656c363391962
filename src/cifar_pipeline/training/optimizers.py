"""Build the optimizer that conf/optimizer/ describes, and Muon with normalized filters (`NormedMuon`)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import instantiate
from timm.optim.muon import zeropower_via_newtonschulz
from torch import Tensor, nn
from torch.optim import Optimizer

from cifar_pipeline.config.validation import target_config


@dataclass(frozen=True)
class OptimizerConfig:
    """Factory of the optimizer, and whether one step uses the whole train split (`full_batch`)."""

    build: Callable[[Iterable[nn.Parameter]], Optimizer]
    full_batch: bool


def build_optimizer_config(options: Mapping[str, Any]) -> OptimizerConfig:
    """Split the options of conf/optimizer into the constructor's arguments and `full_batch`."""
    build = instantiate(target_config(options, "optimizer"), _convert_="all")
    return OptimizerConfig(build, bool(options.get("full_batch", False)))


# Of K. Jordan's Muon, chosen to bring singular values near 1 in few iterations.
NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class NormedMuon(Optimizer):
    """Muon for convolutions with filters of fixed norm, and SGD for all other parameters.

    Batch norm makes the output of a convolution independent of the norm of its filters. For the filters, as a matrix
    `[out, in * h * w]`, with gradient g and momentum m:

        v <- m * v + g;   theta <- theta * sqrt(out) / |theta|;   theta <- theta - lr * orthogonalize(g + m * v)

    For all other parameters, torch's SGD with Nesterov momentum and weight decay w, with separate learning rates:

        g <- g + w * theta;   v <- m * v + g;   theta <- theta - lr * (g + m * v)

    K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024, and the CIFAR-10 recipe there.

    Args:
        params: convolutions `[out, in, h, w]`, matrices `[out, in]`, vectors.
        lr: learning rate of the convolutions.
        momentum: momentum of the convolutions.
        ns_steps: Newton-Schulz iterations that orthogonalize a matrix.
        bias_lr: learning rate of the vectors.
        linear_lr: learning rate of the matrices.
        sgd_momentum: momentum of vectors and matrices.
        weight_decay: fraction of vectors and matrices that a step removes. It is not multiplied by their learning
            rates, but by the factor of the scheduler.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float,
        ns_steps: int,
        bias_lr: float,
        linear_lr: float,
        sgd_momentum: float,
        weight_decay: float,
    ) -> None:
        parameters = list(params)
        filters = [parameter for parameter in parameters if parameter.ndim == 4]
        matrices = [parameter for parameter in parameters if parameter.ndim in (2, 3)]
        vectors = [parameter for parameter in parameters if parameter.ndim < 2]
        other = {"momentum": sgd_momentum, "orthogonal": False}
        groups = [
            {"params": filters, "lr": lr, "momentum": momentum, "orthogonal": True, "weight_decay": 0.0},
            {"params": vectors, "lr": bias_lr, "weight_decay": weight_decay / bias_lr, **other},
            {"params": matrices, "lr": linear_lr, "weight_decay": weight_decay / linear_lr, **other},
        ]
        super().__init__([group for group in groups if group["params"]], {})
        self.ns_steps = ns_steps

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step, and return what `closure`, which recomputes the loss, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    step = self._momentum(parameter, self._gradient(parameter, group["weight_decay"]), group)
                    if group["orthogonal"]:
                        parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
                        step = self._orthogonalize(step)
                    parameter.sub_(step * group["lr"])
        return loss

    @staticmethod
    def _gradient(parameter: Tensor, weight_decay: float) -> Tensor:
        assert parameter.grad is not None
        return parameter.grad + weight_decay * parameter if weight_decay else parameter.grad

    def _momentum(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        """Update the momentum, and return the direction of Nesterov's step."""
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].mul_(group["momentum"]).add_(gradient)
        direction: Tensor = gradient + group["momentum"] * state["momentum"]
        return direction

    def _orthogonalize(self, step: Tensor) -> Tensor:
        matrix = step.reshape(len(step), -1)
        coefficients = [NS_COEFFICIENTS] * self.ns_steps
        return zeropower_via_newtonschulz(matrix, self.ns_steps, coefficients).to(step.dtype).view_as(step)
