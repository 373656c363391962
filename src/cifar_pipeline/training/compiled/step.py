"""Compile whole optimizer steps: forward, backward and update, without Python in between.

At batch 4 most of a step's time is overhead, not arithmetic. Steps are traced through the optimizer's own code, so any
optimizer of tensors works. On a CPU inductor compiles them; on a GPU several steps are captured in one CUDA graph and
replayed with one launch. Parameters and optimizer state are updated in place, so checkpoints are the same as of eager
steps.
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

from cifar_pipeline.training.compiled.small_conv import compiled_cache, use_small_convolutions
from cifar_pipeline.training.module import largest_share

# Takes tensors, changes some in place, and returns scalars.
StepFunction = Callable[..., tuple[Tensor, ...]]

# Calls before a CUDA graph is captured, in which kernels are selected and memory is allocated.
WARMUP_CALLS = 3


class CudaGraph:
    """Several calls of a step function captured in one CUDA graph, which returns the sums of their results.

    Args:
        step: changes some of its tensors in place and returns scalars, without synchronizing the device.
        static_inputs: tensors of every call; the graph refers to them by address.
        dynamic_inputs: tensors with one row per step, whose values are copied in before a replay.

    Raises what `step` and the capture raise.
    """

    def __init__(self, step: StepFunction, static_inputs: Sequence[Tensor], dynamic_inputs: Sequence[Tensor]) -> None:
        self.static_inputs, self.dynamic_inputs = list(static_inputs), [tensor.clone() for tensor in dynamic_inputs]
        side_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            copies = [tensor.clone() for tensor in self.static_inputs]
            for _ in range(WARMUP_CALLS):
                step(*copies, *(tensor[:1] for tensor in self.dynamic_inputs))
        torch.cuda.current_stream().wait_stream(side_stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            rows = zip(*(torch.split(tensor, 1) for tensor in self.dynamic_inputs), strict=True)
            results = zip(*(step(*self.static_inputs, *row) for row in rows), strict=True)
            self.results = [torch.stack(scalars).sum() for scalars in results]

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Replay the graph with the static inputs and new values of the dynamic ones."""
        for buffer, values in zip(self.dynamic_inputs, tensors[len(self.static_inputs) :], strict=True):
            buffer.copy_(values, non_blocking=True)
        self.graph.replay()
        return tuple(tensor.clone() for tensor in self.results)


def make_capturable(optimizer: Optimizer) -> None:
    """Move an optimizer's step counters to its device, because a CUDA graph does not repeat what the CPU counts."""
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = True
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            state.update({key: value.to(parameter.device) for key, value in state.items() if torch.is_tensor(value)})


class CompiledSteps:
    """Optimizer steps of a model compiled into one function.

    Args:
        net: maps raw images to logits; the optimizer has its parameters.
        loss: maps logits and labels to the mean loss.
        optimizer: must have taken a step before, so that its state exists.
        steps: optimizer steps per call of the compiled function.
    """

    def __init__(self, net: nn.Module, loss: nn.Module, optimizer: Optimizer, steps: int) -> None:
        self.steps = steps
        self.net, self.loss, self.optimizer = net, loss, optimizer
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        names = {id(parameter): name for name, parameter in net.named_parameters()}
        self.names = [names[id(parameter)] for parameter in self.parameters]
        self.buffers = {"net": dict(net.named_buffers()), "loss": dict(loss.named_buffers())}
        # Loss and update stay in float32, as in Lightning's mixed precision.
        self.device = self.parameters[0].device.type
        self.autocast_dtype = torch.get_autocast_dtype(self.device) if torch.is_autocast_enabled(self.device) else None
        if self.device == "cuda":
            make_capturable(optimizer)
        self.keys = [[key for key, value in self._state(p).items() if torch.is_tensor(value)] for p in self.parameters]
        self.compiled_fn: StepFunction | None = None

    def compile(self, images: Tensor, labels: Tensor, lrs: Tensor) -> None:
        """Trace and compile the steps for arguments like those of `__call__`, without taking a step.

        Raises any error, if the model, loss or optimizer cannot be traced, compiled or captured.
        """
        first = [values[: self.steps] for values in (images, labels, lrs)]
        # The random state is kept: a resumed training compiles at another step, and must draw the same dropout masks.
        fork = torch.random.fork_rng(devices=[images.device] if self.device == "cuda" else [])
        with torch.no_grad(), fork, torch.autocast(self.device, enabled=False):
            if self.device == "cuda":
                # One step is traced, and captured `steps` times.
                graph, tensors = self.trace(*(values[:1] for values in first))
                self.compiled_fn = CudaGraph(graph, tensors[: -len(first)], first)
            else:
                graph, tensors = self.trace(*first)
                self.compiled_fn = compile_graph(graph, tensors)
                # Run it once on copies, so that errors appear here.
                self.compiled_fn(*map(torch.clone, tensors))

    def trace(self, images: Tensor, labels: Tensor, lrs: Tensor) -> tuple[GraphModule, list[Tensor]]:
        """Return the graph of the steps, and its input tensors, the arguments of this method last."""
        tensors, structure = tree_flatten((*self._persistent_tensors(), images, labels, lrs))
        return trace_graph(lambda *flat: self._step_fn(*tree_unflatten(flat, structure)), tensors), tensors

    def __call__(self, images: Tensor, labels: Tensor, lrs: Tensor) -> tuple[Tensor, Tensor]:
        """Take the steps, and return the sum of their mean losses (float64) and the number of correct predictions.

        Args:
            images: `[S, B, H, W, C] uint8`; S is a multiple of `steps`.
            labels: `[S, B] int64`, or `[S, B, K] float32` if mixed.
            lrs: learning rate of each step and parameter group, `[S, groups] float`.
        """
        if self.compiled_fn is None:
            self.compile(images, labels, lrs)
        assert self.compiled_fn is not None
        # Once for all blocks, because it takes as long as a layer.
        persistent = tree_leaves(self._persistent_tensors())
        blocks = zip(*(torch.split(values, self.steps) for values in (images, labels, lrs)), strict=True)
        with torch.no_grad():
            losses, correct = zip(*(self.compiled_fn(*persistent, *block) for block in blocks), strict=True)
        return torch.stack(losses).sum(), torch.stack(correct).sum()

    def _persistent_tensors(self) -> tuple[Any, ...]:
        """Return weights and optimizer state, which the steps change in place, and the buffers, which they read."""
        weights = [parameter.detach() for parameter in self.parameters]
        state = [[self._state(p)[key] for key in keys] for p, keys in zip(self.parameters, self.keys, strict=True)]
        return weights, state, self.buffers

    def _state(self, parameter: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.optimizer.state[parameter]
        return state

    def _step_fn(
        self,
        weights: Sequence[Tensor],
        state: Sequence[Sequence[Tensor]],
        buffers: dict[str, dict[str, Tensor]],
        images: Tensor,
        labels: Tensor,
        lrs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Take the same steps as the eager engine on functional tensors, while being traced."""

        def mean_loss(values: list[Tensor], step_images: Tensor, step_labels: Tensor) -> tuple[Tensor, Tensor]:
            named = dict(zip(self.names, values, strict=True))
            # Casts are not cached, because the weights change from one step to the next.
            with torch.autocast(
                self.device, self.autocast_dtype, enabled=self.autocast_dtype is not None, cache_enabled=False
            ):
                logits = functional_call(self.net, (named, buffers["net"]), (step_images,))
                return functional_call(self.loss, buffers["loss"], (logits, step_labels)), logits

        optimizer = self._functional_optimizer(weights, state)
        # Without torch's wrapper for hooks and profiling.
        update = inspect.unwrap(type(optimizer).step)
        total = torch.zeros((), dtype=torch.float64, device=images.device)
        correct = torch.zeros((), dtype=torch.int64, device=images.device)
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
            correct = correct + (logits.argmax(1) == largest_share(labels[step])).sum()
        return total, correct

    def _functional_optimizer(self, weights: Sequence[Tensor], state: Sequence[Sequence[Tensor]]) -> Optimizer:
        """Return a copy of the optimizer over other tensors."""
        optimizer: Optimizer = object.__new__(type(self.optimizer))
        optimizer.__dict__.update(self.optimizer.__dict__)
        remaining = iter(weights)
        # On a CPU the compiler fuses single-tensor updates better than `foreach` kernels. On a GPU `foreach` needs
        # fewer launches, and only it takes a learning rate tensor without reading its value.
        flags = {"foreach": self.device == "cuda", "fused": False}
        optimizer.param_groups = [
            {**group, "params": [next(remaining) for _ in group["params"]], **flags}
            for group in self.optimizer.param_groups
        ]
        optimizer.state = {
            weight: {**self._state(parameter), **dict(zip(keys, values, strict=True))}
            for weight, parameter, keys, values in zip(weights, self.parameters, self.keys, state, strict=True)
        }  # type: ignore[assignment]
        return optimizer


def trace_graph(steps: StepFunction, tensors: Sequence[Tensor]) -> GraphModule:
    """Trace a function of such tensors into a graph, including its in-place changes."""
    # With this flag optimizers keep their step counters as tensors instead of reading them.
    torch.compiler._is_compiling_flag = True
    try:
        pure = functionalize(lambda *values: steps(*values), remove="mutations")
        graph: GraphModule = make_fx(pure, tracing_mode="fake")(*tensors)
    finally:
        torch.compiler._is_compiling_flag = False
    return graph


def compile_graph(graph: GraphModule, tensors: Sequence[Tensor]) -> StepFunction:
    """Compile a graph of such tensors with inductor, which caches the code for later processes."""
    compiled_cache()
    use_small_convolutions(graph)
    options: dict[str, Any] = {
        "cpp_wrapper": True,
        "fallback_random": True,
        # Trust the processor's list of instruction sets; testing them with the compiler takes ten seconds.
        "cpp.vec_isa_ok": True,
        # Precompiling the headers takes five seconds, and they are used only once.
        "cpp_cache_precompile_headers": False,
    }
    # Not torch.compile, which checks every argument of each call to validate its code.
    compiled_fn: StepFunction = torch._inductor.compile(graph, list(tensors), options=options)
    return compiled_fn
