"""Batches out of memory: a data set is a tensor, an epoch a permutation, a batch a view.

Source of the idea: K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024 (airbench's loader).

Batches in chunks of some hundred, for a training that takes that many steps at once.

Random generators for torch that follow from a seed and a purpose, and never share a stream.

torch seeds its CPU generator (a Mersenne Twister) with the low 32 bits of the number it is given, whatever else is in
it. Two of several thousand such seeds are likely to be equal: the birthday problem. So the generator's whole state, 624
words, is set from NumPy's `SeedSequence`, which hashes all of the seed, the purpose and the numbers into 128 bits. CUDA
and Apple's GPUs have counter-based generators (Philox) with keys of 64 bits, which `SeedSequence` fills.
"""

from collections.abc import Callable, Iterator
from enum import IntEnum
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.random import SeedSequence
from torch import Generator, Tensor

from cifar_pipeline.data.augmentation import no_augmentation
from cifar_pipeline.data.dataset import rows_per_chunk
from cifar_pipeline.utils.errors import UserError

# The beginning of `Generator.get_state()` on a CPU: `CPUGeneratorImplStateLegacy` in ATen/CPUGeneratorImpl.cpp. What
# follows, a kept second normal number, is empty in a new generator. tests/data/test_seeds.py compares it with NumPy.
CPU_STATE = np.dtype([("seed", "u8"), ("left", "i4"), ("seeded", "i4"), ("next", "u8"), ("words", "u8", 624)])


class RandomStream(IntEnum):
    """What random numbers are drawn for; each has streams of its own."""

    ORDER = 0
    AUGMENTATION = 1
    TURNS = 2
    NETWORK = 3


def generator(device: torch.device | str, seed: int, purpose: RandomStream, *numbers: int) -> Generator:
    """A generator on `device`; `numbers` (each below 2^32) tell the streams of a purpose apart: an epoch, a rank."""
    sequence = _sequence(seed, purpose, numbers)
    made = Generator(device)
    if made.device.type == "cpu":
        return made.set_state(_cpu_state(sequence))
    return made.manual_seed(_word(sequence))


def seed_torch(seed: int, purpose: RandomStream, *numbers: int) -> None:
    """Seed torch's own generators, of the CPU and of each GPU, as `generator` does: layers such as dropout use them."""
    sequence = _sequence(seed, purpose, numbers)
    torch.manual_seed(_word(sequence))
    torch.set_rng_state(_cpu_state(sequence))


def _sequence(seed: int, purpose: RandomStream, numbers: tuple[int, ...]) -> SeedSequence:
    # As a spawn key and not as a list with the seed, which is padded with zeros: [7] and [7, 0] are one sequence.
    return SeedSequence(seed, spawn_key=(purpose, *numbers))


def _word(sequence: SeedSequence) -> int:
    return int(sequence.generate_state(1, np.uint64)[0])


def _cpu_state(sequence: SeedSequence) -> Tensor:
    """The state of a CPU generator that is about to mix its words for the first time."""
    state = Generator().get_state()
    content = state.numpy()[: CPU_STATE.itemsize].view(CPU_STATE)
    content["left"], content["seeded"], content["next"] = 1, 1, 0
    content["words"] = sequence.generate_state(624)
    content["words"][0, 0] = 2**31  # as NumPy's own MT19937 has it: only this bit counts, and not all may be 0
    return state


Augment = Callable[[Tensor, Generator, Tensor], Tensor]

# Gathered and augmented together, so that a batch of 4 costs a view and not a kernel; of large images fewer.
GATHER_SIZE = 4096  # images


class TensorLoader:
    """Iterates over `(images [B, H, W, C] uint8, labels [B] int64)`, on the device that the tensors are on.

    What an epoch yields follows from `seed`, the epoch (`set_epoch`) and the position in it, and from nothing else:
    a training that was interrupted sees the very batches that it would have seen. The last batch may be smaller.

    With `world_size` processes a batch is that of a single process, of which each `rank` gets its share (`share`), with
    the same augmentation: each draws for the whole batch. Where the last batch has no image for a rank, it gets the
    batch's first one, which counts for nothing: processes that wait for each other need the same number of batches.

    Raises Refusal for a batch size below 1, beyond the data (when shuffled: evaluation takes what there is), and for
    more processes than images in a batch.
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
            raise UserError(f"batch_size={batch_size} makes no batch: write a whole number from 1 up.")
        if shuffle and batch_size > len(images):
            raise UserError(
                f"batch_size={batch_size} is larger than the data, which has {len(images)} images: write at most that."
            )
        if batch_size < world_size:
            raise UserError(f"A batch of {batch_size} cannot be shared by {world_size} processes: start fewer.")
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.seed, self.shuffle = seed, shuffle
        self.augment = None if getattr(augment, "func", augment) is no_augmentation else augment
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.position = 0  # batches handed out in this epoch
        self.start = 0  # where the next pass begins; other than 0 only after load_state_dict
        self.first: Tensor | None = None  # the images whose turn it is in the first epoch
        # Lightning announces an epoch to `loader.sampler`, and looks for shuffling in `loader.batch_sampler`.
        self.sampler, self.batch_sampler = self, None

    def __len__(self) -> int:
        """The number of batches in an epoch, the same for each rank."""
        return ceil(len(self.images) / self.batch_size)

    def global_batch_size(self, batch: int) -> int:
        """Images in this batch of an epoch, in all processes together."""
        return min(self.batch_size, len(self.images) - batch * self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start, self.start = self.start, 0
        self.position = start
        total = len(self)
        if start >= total:
            return
        order = self._permutation()
        per_chunk = max(1, min(GATHER_SIZE, rows_per_chunk(self.images[:1].nbytes)) // self.batch_size)
        for chunk in range(start // per_chunk, ceil(total / per_chunk)):
            first, last = chunk * per_chunk, min((chunk + 1) * per_chunk, total)
            together = order[first * self.batch_size : last * self.batch_size]
            places, ends = self._rank_indices([self.global_batch_size(batch) for batch in range(first, last)])
            mine = together if places is None else together[places]
            images, labels = self.images.index_select(0, together if self.augment else mine), self.labels[mine]
            if self.augment is not None:
                chance = generator(images.device, self.seed, RandomStream.AUGMENTATION, self.epoch, chunk)
                images = self.augment(images, chance, self._alternating_flip(together))
                images = images if places is None else images[places]
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

    def _rank_indices(self, sizes: list[int]) -> tuple[Tensor | None, list[int]]:
        """Where this rank's images lie among those of batches of these sizes (None: all are), and how many of each."""
        if self.world_size == 1:
            return None, sizes
        starts = [sum(sizes[:batch]) for batch in range(len(sizes))]
        shares = [
            torch.arange(start + self.rank, start + size, self.world_size)
            if self.rank < size
            else torch.tensor([start])
            for start, size in zip(starts, sizes, strict=True)
        ]
        return torch.cat(shares).to(self.images.device), list(map(len, shares))

    def _permutation(self) -> Tensor:
        """The indices of the images in the order of this epoch."""
        count = len(self.images)
        if not self.shuffle:
            return torch.arange(count, device=self.images.device)
        # Drawn on the CPU, where the order is the same for every device.
        chance = generator("cpu", self.seed, RandomStream.ORDER, self.epoch)
        return torch.randperm(count, generator=chance).to(self.images.device)

    def _alternating_flip(self, indices: Tensor) -> Tensor:
        """Of each image whether it is its turn, `[B] bool`: in every other epoch; chance decides which."""
        if self.first is None:
            first = torch.randint(0, 2, (len(self.images),), generator=generator("cpu", self.seed, RandomStream.TURNS))
            self.first = first.to(self.images.device).bool()
        return self.first[indices] ^ bool(self.epoch % 2)


def rank_batch_size(images: int, rank: int, world_size: int) -> int:
    """How many of a batch of so many images are this rank's: every `world_size`-th, from the one with its number on."""
    return max(0, ceil((images - rank) / world_size))


class ChunkedLoader:
    """Iterates over `(images [S, B, H, W, C] uint8, labels [S, B] int64)`: the same batches, S at once.

    A chunk has `steps` batches; the last of an epoch fewer. A smaller last batch is a chunk of its own.
    """

    def __init__(self, batches: TensorLoader, steps: int) -> None:
        self.batches, self.steps = batches, steps
        self.position = 0  # batches handed out in this epoch
        # Lightning announces an epoch to `loader.sampler`, and looks for shuffling in `loader.batch_sampler`.
        self.sampler, self.batch_sampler = self, None

    def __len__(self) -> int:
        whole = len(self.batches.images) // self.batches.batch_size
        return ceil(whole / self.steps) + (len(self.batches) - whole)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images: list[Tensor] = []
        labels: list[Tensor] = []
        self.position = self.batches.start
        for pictures, truth in self.batches:
            if images and (len(images) == self.steps or len(truth) != len(labels[-1])):
                yield self._chunk(images, labels)
                images, labels = [], []
            images.append(pictures)
            labels.append(truth)
        if images:
            yield self._chunk(images, labels)

    def _chunk(self, images: list[Tensor], labels: list[Tensor]) -> tuple[Tensor, Tensor]:
        self.position += len(images)
        return torch.stack(images), torch.stack(labels)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next pass yields."""
        self.batches.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and how many of its batches were handed out: fewer than were asked of `batches`."""
        return self.batches.state_dict() | {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next pass go on where `state_dict` was taken."""
        self.batches.load_state_dict(state)
