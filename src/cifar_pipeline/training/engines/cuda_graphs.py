"""Steps on a GPU recorded once and replayed: one launch for some hundred small kernels, which Python would wait for."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

Steps = Callable[..., tuple[Tensor, ...]]

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

    def __init__(self, step: Steps, fixed: Sequence[Tensor], given: Sequence[Tensor]) -> None:
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


def keep_state_on_the_device(optimizer: Optimizer) -> None:
    """Move an optimizer's counters to where its parameters are: what the CPU counts, a recording would count once."""
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = True
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            state.update({key: value.to(parameter.device) for key, value in state.items() if torch.is_tensor(value)})
