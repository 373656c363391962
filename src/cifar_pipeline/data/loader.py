"""Load batches from tensors in memory: an epoch is a permutation, a batch is a view of it.

Source of the idea: K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024 (airbench's loader).
"""

from collections.abc import Iterator
from math import ceil
from typing import Any

import torch
from torch import Tensor

from cifar_pipeline.data.dataset import rows_per_chunk
from cifar_pipeline.data.random_streams import RandomStream, generator
from cifar_pipeline.data.transforms import Augmentation, Chunk
from cifar_pipeline.utils.errors import UserError

# Images that are gathered and augmented at once, so that a batch of 4 costs a view, not a kernel; fewer if large.
GATHER_SIZE = 4096


class TensorLoader:
    """Iterate over `(images [B, H, W, C] uint8, labels [B] int64)` on the device of the tensors.

    With an augmentation that mixes labels they are `[B, K] float32`, the fraction of each class.

    The batches of an epoch depend only on `seed`, the epoch (`set_epoch`) and the position in it, so that a resumed
    training sees the same batches as an uninterrupted one. The last batch may be smaller.

    With `world_size` processes, each `rank` gets its share of the batches of a single process (`rank_batch_size`), with
    the same augmentation: a rank augments its own images, and the whole batch for transforms that take batches. A rank
    without an image in the last batch gets the batch's first image as padding, because ranks that synchronize need the
    same number of batches.

    `row_bytes` decides how many images are augmented at once, and thereby the random numbers of each; by default it is
    the size of an image.

    Raises UserError if the batch size is below 1, larger than the data (only when shuffled), or smaller than
    `world_size`.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        augmentation: Augmentation | None = None,
        rank: int = 0,
        world_size: int = 1,
        row_bytes: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} is not a positive number: set a whole number from 1 up.")
        if shuffle and batch_size > len(images):
            raise UserError(
                f"batch_size={batch_size} is larger than the training split, which has {len(images)} images: set at "
                "most that."
            )
        if batch_size < world_size:
            raise UserError(f"A batch of {batch_size} cannot be split among {world_size} processes: start fewer.")
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.seed, self.shuffle = seed, shuffle
        self.augmentation = augmentation if augmentation and augmentation.transforms else None
        self.rank, self.world_size = rank, world_size
        self.row_bytes = row_bytes
        self.epoch = 0
        self.batches_yielded = 0  # in this epoch
        self.resume_at = 0  # the batch at which the next pass begins; not 0 only after load_state_dict
        self.first_epoch_flip: Tensor | None = None
        # Lightning calls `loader.sampler.set_epoch` and inspects `loader.batch_sampler` for shuffling.
        self.sampler, self.batch_sampler = self, None

    def __len__(self) -> int:
        """The number of batches per epoch, the same on each rank."""
        return ceil(len(self.images) / self.batch_size)

    def global_batch_size(self, batch: int) -> int:
        """Return the number of images in a batch of the epoch, summed over all ranks."""
        return min(self.batch_size, len(self.images) - batch * self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start, self.resume_at = self.resume_at, 0
        self.batches_yielded = start
        total = len(self)
        if start >= total:
            return
        order = self._permutation()
        per_chunk = max(
            1, min(GATHER_SIZE, rows_per_chunk(self.row_bytes or self.images[:1].nbytes)) // self.batch_size
        )
        for chunk in range(start // per_chunk, ceil(total / per_chunk)):
            first, last = chunk * per_chunk, min((chunk + 1) * per_chunk, total)
            global_indices = order[first * self.batch_size : last * self.batch_size]
            global_sizes = [self.global_batch_size(batch) for batch in range(first, last)]
            own, sizes = self._rank_indices(global_sizes)
            rank_indices = global_indices if own is None else global_indices[own]
            indices = global_indices if self.augmentation else rank_indices
            images, labels = self.images.index_select(0, indices), self.labels[indices]
            if self.augmentation is not None:
                gathered = Chunk(
                    images,
                    labels,
                    self._alternating_flip(global_indices),
                    global_sizes,
                    list(range(first * self.batch_size, first * self.batch_size + len(images))),
                    seed=self.seed,
                    epoch=self.epoch,
                    index=chunk,
                    first_batch=first,
                )
                images, labels = self.augmentation.apply(gathered, own, sizes)
            skip = max(0, start - first)
            batches = zip(torch.split(images, sizes), torch.split(labels, sizes), strict=True)
            for batch in list(batches)[skip:]:
                self.batches_yielded += 1
                yield batch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass, which begins at its first batch unless this epoch was just resumed."""
        if epoch != self.epoch:
            self.epoch, self.batches_yielded, self.resume_at = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and the number of batches already yielded in it."""
        return {"epoch": self.epoch, "position": self.batches_yielded}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume: the next pass begins after the last batch that was yielded before `state_dict`."""
        self.epoch = state["epoch"]
        self.batches_yielded = self.resume_at = state["position"]

    def _rank_indices(self, sizes: list[int]) -> tuple[Tensor | None, list[int]]:
        """Return the positions of this rank's images in batches of these sizes, and its number of images in each.

        None instead of the positions: all of them.
        """
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
        """Return the order of the images in this epoch, `[N] int64`."""
        count = len(self.images)
        if not self.shuffle:
            return torch.arange(count, device=self.images.device)
        # Drawn on the CPU, so that the order does not depend on the device.
        random = generator("cpu", self.seed, RandomStream.ORDER, self.epoch)
        return torch.randperm(count, generator=random).to(self.images.device)

    def _alternating_flip(self, indices: Tensor) -> Tensor:
        """Return `[B] bool`: drawn at random for each image in the first epoch, inverted in every other epoch."""
        if self.first_epoch_flip is None:
            random = generator("cpu", self.seed, RandomStream.FLIP)
            flip = torch.randint(0, 2, (len(self.images),), generator=random)
            self.first_epoch_flip = flip.to(self.images.device).bool()
        return self.first_epoch_flip[indices] ^ bool(self.epoch % 2)


def rank_batch_size(images: int, rank: int, world_size: int) -> int:
    """Return how many images of a global batch a rank gets: images rank, rank + world_size, ..."""
    return max(0, ceil((images - rank) / world_size))


class ChunkedLoader:
    """Iterate over `(images [S, B, H, W, C] uint8, labels [S, B] int64)`: S batches of a TensorLoader at once.

    For compiled blocks of steps. A chunk has `steps` batches, the last one of an epoch fewer; a smaller last batch is a
    chunk of its own.
    """

    def __init__(self, batches: TensorLoader, steps: int) -> None:
        self.batches, self.steps = batches, steps
        self.batches_yielded = 0  # in this epoch
        # Lightning calls `loader.sampler.set_epoch` and inspects `loader.batch_sampler` for shuffling.
        self.sampler, self.batch_sampler = self, None

    def __len__(self) -> int:
        full = len(self.batches.images) // self.batches.batch_size
        return ceil(full / self.steps) + (len(self.batches) - full)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images: list[Tensor] = []
        labels: list[Tensor] = []
        self.batches_yielded = self.batches.resume_at
        for batch_images, batch_labels in self.batches:
            if images and (len(images) == self.steps or len(batch_labels) != len(labels[-1])):
                yield self._chunk(images, labels)
                images, labels = [], []
            images.append(batch_images)
            labels.append(batch_labels)
        if images:
            yield self._chunk(images, labels)

    def _chunk(self, images: list[Tensor], labels: list[Tensor]) -> tuple[Tensor, Tensor]:
        self.batches_yielded += len(images)
        return torch.stack(images), torch.stack(labels)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass."""
        self.batches.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and the number of batches yielded in chunks, which may lag behind those of `batches`."""
        return self.batches.state_dict() | {"position": self.batches_yielded}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume: the next pass begins after the last chunk that was yielded before `state_dict`."""
        self.batches.load_state_dict(state)
