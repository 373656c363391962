"""Apply a function to the images of a chunk in several processes, which share the arrays.

Transforms of single images are many small operations in Python, which threads of one process cannot run at the same
time.
"""

import mmap
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from math import prod

import numpy as np
import torch
from torch import Tensor

from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.process import exit_when_process_dies

# Takes an image `[H, W, C] uint8`, an index that decides its random numbers, and the key of the random streams.
ImageFunction = Callable[[Tensor, int, tuple[int, int]], Tensor]

# The pool's function and arrays, in a worker.
_job: "tuple[ImageFunction, Tensor, Tensor] | None" = None


class ImageWorkers:
    """Processes that apply a function to images. They are forked at the first call, and end with this object.

    Args:
        function: what they apply.
        count: number of processes.
        capacity: most images of a call.
        shape, new_shape: of an image before and after the function, `(H, W, C)`.
    """

    def __init__(
        self,
        function: ImageFunction,
        count: int,
        capacity: int,
        shape: tuple[int, ...],
        new_shape: tuple[int, ...],
    ) -> None:
        self.count, self.capacity, self.shape = count, capacity, shape
        self.input, self.output = _shared((capacity, *shape)), _shared((capacity, *new_shape))
        self.pool = ProcessPoolExecutor(
            count,
            multiprocessing.get_context("fork"),
            _start,
            (function, self.input, self.output, os.getpid()),
        )

    def fits(self, images: Tensor) -> bool:
        """Return whether `images [N, H, W, C]` are of the size and not more than the processes expect."""
        return len(images) <= self.capacity and images.shape[1:] == self.shape

    def __call__(self, images: Tensor, positions: Sequence[int], key: tuple[int, int]) -> Tensor:
        """Apply the function to images `[N, H, W, C] uint8`, and return those that it returns.

        Args:
            images: the images.
            positions: index of the random numbers of each.
            key: of the random streams.

        Raises:
            UserError: a process was killed; or what the function raises.
        """
        number = len(images)
        self.input[:number] = images
        parts = [list(range(start, number, self.count)) for start in range(min(self.count, number))]
        calls = [self.pool.submit(_run, part, [positions[index] for index in part], key) for part in parts]
        try:
            for call in calls:
                call.result()
        except BrokenProcessPool:
            raise UserError(
                "A process that augments images was killed, possibly for lack of memory: runtime.threads=1 starts none."
            ) from None
        return self.output[:number].clone()


def _shared(shape: tuple[int, ...]) -> Tensor:
    """Return zeros `uint8` in memory that forked processes share."""
    array: np.ndarray = np.frombuffer(mmap.mmap(-1, prod(shape)), np.uint8).reshape(shape)
    return torch.from_numpy(array)


def _start(function: ImageFunction, images: Tensor, output: Tensor, parent: int) -> None:
    """Prepare a worker."""
    global _job
    _job = function, images, output
    # Ctrl-C reaches all processes of a terminal; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    exit_when_process_dies(parent)


def _run(indices: Sequence[int], positions: Sequence[int], key: tuple[int, int]) -> None:
    """Apply the function to some of the images."""
    assert _job is not None
    function, images, output = _job
    for index, position in zip(indices, positions, strict=True):
        output[index] = function(images[index], position, key)
