"""Batches in chunks of some hundred, for a training that takes that many steps at once."""

from collections.abc import Iterator
from math import ceil
from typing import Any

import torch
from torch import Tensor

from cifar_pipeline.data.batches import Batches


class Chunks:
    """Iterates over `(images [S, B, H, W, C] uint8, labels [S, B] int64)`: the same batches, S at once.

    A chunk has `steps` batches; the last of an epoch fewer. A smaller last batch is a chunk of its own.
    """

    def __init__(self, batches: Batches, steps: int) -> None:
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
