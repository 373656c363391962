"""Batches out of memory: a data set is a tensor, an epoch a permutation, a batch a view.

Source of the idea: K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024 (airbench's loader).
"""

from collections.abc import Callable, Iterator
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from cifar_pipeline.console import Refusal

Augment = Callable[[Tensor, Generator, Tensor], Tensor]

# Gathered and augmented together, so that a batch of 4 costs a view and not a kernel.
CHUNK = 4096  # images
# The stream of random numbers for the images' turns; those of an epoch are its chunks.
TURNS = 2**31


class Batches:
    """Iterates over `(images [B, H, W, C] uint8, labels [B] int64)`, on the device that the tensors are on.

    What an epoch yields follows from `seed`, the epoch (`set_epoch`) and the position in it, and from nothing else:
    a training that was interrupted sees the very batches that it would have seen. The last batch may be smaller.

    With `world_size` processes, each `rank` has its own images and all have the same number of batches (processes that
    wait for each other would never end otherwise); where fewer images than processes are left over, they make some
    processes' last batch larger by one.

    Raises Refusal for a batch size below 1, beyond the data (when shuffled: evaluation takes what there is), and for
    more processes than images.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        augment: Augment | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise Refusal(f"batch_size={batch_size} makes no batch: write a whole number from 1 up.")
        if shuffle and batch_size > len(images):
            raise Refusal(
                f"batch_size={batch_size} is larger than the data, which has {len(images)} images: write at most that."
            )
        if 0 < len(images) < world_size:
            raise Refusal(f"{len(images)} images cannot be shared by {world_size} processes: start fewer.")
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.seed, self.shuffle, self.augment = seed, shuffle, augment
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.position = 0  # batches handed out in this epoch
        self.start = 0  # where the next pass begins; other than 0 only after load_state_dict
        self.first: Tensor | None = None  # the images whose turn it is in the first epoch
        # Lightning announces an epoch to `loader.sampler`, and looks for shuffling in `loader.batch_sampler`.
        self.sampler, self.batch_sampler = self, None

    def __len__(self) -> int:
        """The number of batches in an epoch, the same for each rank."""
        together = self.batch_size * self.world_size
        whole, left = divmod(len(self.images), together)
        return whole + (left >= self.world_size or (left > 0 and not whole))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start, self.start = self.start, 0
        self.position = start
        total = len(self)
        if start >= total:
            return
        order = self._order()
        per_chunk = max(1, CHUNK // self.batch_size)
        for chunk in range(start // per_chunk, ceil(total / per_chunk)):
            first, last = chunk * per_chunk, min((chunk + 1) * per_chunk, total)
            ends = [self.batch_size] * (last - first)
            mine = order[first * self.batch_size : last * self.batch_size if last < total else None]
            ends[-1] += len(mine) - sum(ends)
            images, labels = self.images.index_select(0, mine), self.labels.index_select(0, mine)
            if self.augment is not None:
                images = self.augment(images, self._generator(1 + chunk, images.device), self._turns(mine))
            skip = max(0, start - first)
            pairs = zip(torch.split(images, ends), torch.split(labels, ends), strict=True)
            for batch in list(pairs)[skip:]:
                self.position += 1
                yield batch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next pass yields, from its beginning unless it is the one that was resumed."""
        if epoch != self.epoch:
            self.epoch, self.position, self.start = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and how many of its batches were handed out."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next pass go on where `state_dict` was taken."""
        self.epoch = state["epoch"]
        self.position = self.start = state["position"]

    def _order(self) -> Tensor:
        """The indices of this rank's images in the order of this epoch."""
        count = len(self.images)
        # Drawn on the CPU, where the order is the same for every device.
        order = torch.randperm(count, generator=self._generator(0, "cpu")) if self.shuffle else torch.arange(count)
        return order[self.rank :: self.world_size].contiguous().to(self.images.device)

    def _turns(self, indices: Tensor) -> Tensor:
        """Of each image whether it is its turn, `[B] bool`: in every other epoch; chance decides which."""
        if self.first is None:
            first = torch.randint(0, 2, (len(self.images),), generator=self._generator(TURNS, "cpu", epoch=0))
            self.first = first.to(self.images.device).bool()
        return self.first[indices] ^ bool(self.epoch % 2)

    def _generator(self, stream: int, device: torch.device | str, epoch: int | None = None) -> Generator:
        """A generator that follows from the seed, the epoch and what it is for: 0 the order, 1 + i chunk i."""
        rank = self.rank if stream not in (0, TURNS) else 0  # the order is one for all
        epoch = self.epoch if epoch is None else epoch
        words = np.random.SeedSequence([self.seed, epoch, stream, rank]).generate_state(1, np.uint64)
        return Generator(device).manual_seed(int(words[0]))
