"""Which checkpoints a training keeps, written whole or not at all, and read without unpickling code."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import TorchCheckpointIO

from cifar_pipeline.files import whole_file

LAST, BEST = "last", "best"


class AtomicCheckpoints(TorchCheckpointIO):
    """Killed at any moment, the old file or the new one is there; Lightning's own way copies, and does not sync."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        with whole_file(Path(path)) as part, part.open("wb") as file:
            torch.save(checkpoint, file)


def checkpoint_callbacks(folder: Path, has_val: bool) -> list[ModelCheckpoint]:
    """Keep the last weights and, where there is a validation part, those of the epoch with the best accuracy on it."""
    checkpoint = partial(ModelCheckpoint, folder, save_on_train_epoch_end=True, enable_version_counter=False)
    last = checkpoint(filename=LAST)
    if not has_val:
        return [last]
    return [checkpoint(filename=BEST, monitor="val/accuracy", mode="max", save_weights_only=True), last]


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The module's state dict in a checkpoint, read without unpickling anything but tensors and plain values."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    weights: dict[str, torch.Tensor] = checkpoint["state_dict"]
    return weights
