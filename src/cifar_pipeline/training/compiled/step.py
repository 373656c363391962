"""Several optimizer steps as one compiled function: forward, backward and update, without Python in between.

At batch 4 most of a step's time is overhead, not arithmetic. The steps are traced through the optimizer's own code, so
any optimizer of tensors works, and compiled by inductor. Parameters and the optimizer's state stay the tensors that
they are, updated in place: a checkpoint knows nothing of blocks.

Steps on a GPU recorded once and replayed: one launch for some hundred small kernels, which Python would wait for.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, functionalize, grad_and_value
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import Optimizer
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from cifar_pipeline.training.compiled.cache import compiled_cache
from cifar_pipeline.training.compiled.small_conv import use_small_convolutions

GraphSteps = Callable[..., tuple[Tensor, ...]]

# Calls before a recording, in which kernels are chosen and memory is set aside.
WARM_UP = 3


class CudaGraph:
    """Several calls of a function of one step, recorded together; returns the sums of what they return.

    Args:
        step: changes some of its tensors in place and returns scalars; asks the device for no number.
        fixed: tensors that it is always called with: a recording knows them by their addresses.
        given: tensors with a row for each step, whose values a replay copies.

    Raises whatever `step` or a recording does.
    """

    def __init__(self, step: GraphSteps, fixed: Sequence[Tensor], given: Sequence[Tensor]) -> None:
        self.fixed, self.given = list(fixed), [tensor.clone() for tensor in given]
        apart = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        apart.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(apart):
            copies = [tensor.clone() for tensor in self.fixed]
            for _ in range(WARM_UP):
                step(*copies, *(tensor[:1] for tensor in self.given))
        torch.cuda.current_stream().wait_stream(apart)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            rows = zip(*(torch.split(tensor, 1) for tensor in self.given), strict=True)
            returned = zip(*(step(*self.fixed, *row) for row in rows), strict=True)
            self.returned = [torch.stack(scalars).sum() for scalars in returned]

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Replay with `fixed` and other values of `given`."""
        for mine, theirs in zip(self.given, tensors[len(self.fixed) :], strict=True):
            mine.copy_(theirs, non_blocking=True)
        self.graph.replay()
        return tuple(tensor.clone() for tensor in self.returned)


def make_capturable(optimizer: Optimizer) -> None:
    """Move an optimizer's counters to where its parameters are: what the CPU counts, a recording would count once."""
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = True
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            state.update({key: value.to(parameter.device) for key, value in state.items() if torch.is_tensor(value)})


Steps = Callable[..., tuple[Tensor, ...]]


class CompiledSteps:
    """`steps` optimizer steps of `net` on `loss` as one function.

    Args:
        net: raw images to logits; its parameters are the optimizer's.
        loss: logits and labels to the mean loss.
        optimizer: has taken a step before, so that its state is there.
        steps: how many steps the function takes.
    """

    def __init__(self, net: nn.Module, loss: nn.Module, optimizer: Optimizer, steps: int) -> None:
        self.steps = steps
        self.net, self.loss, self.optimizer = net, loss, optimizer
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        names = {id(parameter): name for name, parameter in net.named_parameters()}
        self.names = [names[id(parameter)] for parameter in self.parameters]
        self.buffers = {"net": dict(net.named_buffers()), "loss": dict(loss.named_buffers())}
        # The loss and the update stay in float32, as Lightning has it.
        self.device = self.parameters[0].device.type
        self.mixed = torch.get_autocast_dtype(self.device) if torch.is_autocast_enabled(self.device) else None
        if self.device == "cuda":
            make_capturable(optimizer)
        self.keys = [[key for key, value in self._state(p).items() if torch.is_tensor(value)] for p in self.parameters]
        self.code: Steps | None = None

    def compile(self, images: Tensor, labels: Tensor, lrs: Tensor) -> None:
        """Trace and compile the steps for arguments as `__call__` takes them; takes no step.

        Raises whatever the network, the loss or the optimizer does that can't be traced, compiled or recorded.
        """
        first = [values[: self.steps] for values in (images, labels, lrs)]
        # To draw for dropout here would change what the training draws: it compiles where it is taken up again, too.
        fork = torch.random.fork_rng(devices=[images.device] if self.device == "cuda" else [])
        with torch.no_grad(), fork, torch.autocast(self.device, enabled=False):
            if self.device == "cuda":
                # A recording repeats one step as often as there are steps.
                graph, tensors = self.traced(*(values[:1] for values in first))
                self.code = CudaGraph(graph, tensors[: -len(first)], first)
            else:
                graph, tensors = self.traced(*first)
                self.code = compiled(graph, tensors)
                # The first call finds what can't be run after all, on copies.
                self.code(*map(torch.clone, tensors))

    def traced(self, images: Tensor, labels: Tensor, lrs: Tensor) -> tuple[GraphModule, list[Tensor]]:
        """The steps for these images as a graph, and the tensors that it takes: these come last."""
        tensors, form = tree_flatten((*self._persistent_tensors(), images, labels, lrs))
        return trace(lambda *flat: self._steps(*tree_unflatten(flat, form)), tensors), tensors

    def __call__(self, images: Tensor, labels: Tensor, lrs: Tensor) -> tuple[Tensor, Tensor]:
        """Take the steps; returns the sum of their mean losses (double) and the number of right answers.

        Args:
            images: `[S, B, H, W, C] uint8`; S is a multiple of `steps`.
            labels: `[S, B] int64`.
            lrs: the learning rate of each step and parameter group, `[S, groups] float`.
        """
        if self.code is None:
            self.compile(images, labels, lrs)
        assert self.code is not None
        # Once for all blocks: to look them up takes as long as a layer.
        kept = tree_leaves(self._persistent_tensors())
        blocks = zip(*(torch.split(values, self.steps) for values in (images, labels, lrs)), strict=True)
        with torch.no_grad():
            losses, right = zip(*(self.code(*kept, *block) for block in blocks), strict=True)
        return torch.stack(losses).sum(), torch.stack(right).sum()

    def _persistent_tensors(self) -> tuple[Any, ...]:
        """What the steps change in place, and what they only read beside the batches."""
        weights = [parameter.detach() for parameter in self.parameters]
        state = [[self._state(p)[key] for key in keys] for p, keys in zip(self.parameters, self.keys, strict=True)]
        return weights, state, self.buffers

    def _state(self, parameter: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.optimizer.state[parameter]
        return state

    def _steps(
        self,
        weights: Sequence[Tensor],
        state: Sequence[Sequence[Tensor]],
        buffers: dict[str, dict[str, Tensor]],
        images: Tensor,
        labels: Tensor,
        lrs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """What is traced: the same steps as without a block, on tensors that stand for the real ones."""

        def mean_loss(values: list[Tensor], pictures: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
            named = dict(zip(self.names, values, strict=True))
            # Casts are not kept from one step to the next: the weights are others by then.
            with torch.autocast(self.device, self.mixed, enabled=self.mixed is not None, cache_enabled=False):
                logits = functional_call(self.net, (named, buffers["net"]), (pictures,))
                return functional_call(self.loss, buffers["loss"], (logits, truth)), logits

        optimizer = self._functional_optimizer(weights, state)
        # The optimizer's own code, without what torch wraps around it for hooks and profiling.
        update = inspect.unwrap(type(optimizer).step)
        total = torch.zeros((), dtype=torch.float64, device=images.device)
        right = torch.zeros((), dtype=torch.int64, device=images.device)
        for step in range(len(labels)):
            gradients, (loss, logits) = grad_and_value(mean_loss, has_aux=True)(
                list(weights), images[step], labels[step]
            )
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            for index, group in enumerate(optimizer.param_groups):
                group["lr"] = lrs[step, index]
            update(optimizer)
            total = total + loss
            right = right + (logits.argmax(1) == labels[step]).sum()
        return total, right

    def _functional_optimizer(self, weights: Sequence[Tensor], state: Sequence[Sequence[Tensor]]) -> Optimizer:
        """An optimizer of the same kind and values over other tensors."""
        optimizer: Optimizer = object.__new__(type(self.optimizer))
        optimizer.__dict__.update(self.optimizer.__dict__)
        remaining = iter(weights)
        # On a CPU one tensor at a time: the compiler fuses better than the grouped kernels do. On a GPU those are fewer
        # launches, and only they take a learning rate that is a tensor without asking for its value.
        ways = {"foreach": self.device == "cuda", "fused": False}
        optimizer.param_groups = [
            {**group, "params": [next(remaining) for _ in group["params"]], **ways}
            for group in self.optimizer.param_groups
        ]
        optimizer.state = {
            weight: {**self._state(parameter), **dict(zip(keys, values, strict=True))}
            for weight, parameter, keys, values in zip(weights, self.parameters, self.keys, state, strict=True)
        }  # type: ignore[assignment]
        return optimizer


def trace(steps: Steps, tensors: Sequence[Tensor]) -> GraphModule:
    """The operations that `steps` does on such tensors, as a graph; what it changes in place, the graph does too."""
    # Optimizers then keep their step counters as tensors instead of reading them.
    torch.compiler._is_compiling_flag = True
    try:
        pure = functionalize(lambda *values: steps(*values), remove="mutations")
        graph: GraphModule = make_fx(pure, tracing_mode="fake")(*tensors)
    finally:
        torch.compiler._is_compiling_flag = False
    return graph


def compiled(graph: GraphModule, tensors: Sequence[Tensor]) -> Steps:
    """Machine code for a graph that takes such tensors. Inductor keeps it for later processes too."""
    compiled_cache()
    use_small_convolutions(graph)
    options: dict[str, Any] = {
        "cpp_wrapper": True,
        "fallback_random": True,
        # What the processor can do is asked of itself; to try it with the compiler takes ten seconds.
        "cpp.vec_isa_ok": True,
        # A header is compiled once here: to prepare it for more takes five seconds.
        "cpp_cache_precompile_headers": False,
    }
    # Not torch.compile, which looks at every argument of each call again to see whether its code still fits.
    code: Steps = torch._inductor.compile(graph, list(tensors), options=options)
    return code
