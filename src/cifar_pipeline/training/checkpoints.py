"""Which checkpoints a training keeps, written whole or not at all, and read without unpickling code.

`last` is the end of the newest epoch, `before` that of the one before it; `within`, from within an epoch, is newer
than both; `best` are the weights of the epoch with the best accuracy on the validation part.
"""

import errno
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import TorchCheckpointIO

from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.console import info, warning
from cifar_pipeline.utils.errors import UserError

# Batches between two looks at the clock, where several processes have to agree.
CLOCK_SYNC_BATCHES = 10
UNREADABLE_ERRNOS = {errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
MID_EPOCH, LAST, PREVIOUS, BEST = "mid_epoch", "last", "previous", "best"


def checkpoint_path(folder: Path, name: str) -> Path:
    """Where the checkpoint of this name lies."""
    return folder / f"{name}.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Killed at any moment, the old file or the new one is there; Lightning's own way copies, and does not sync.

    Args:
        fingerprint: of the training, noted in each file, so that no other's is taken for it.
    """

    def __init__(self, fingerprint: str) -> None:
        super().__init__()
        self.fingerprint = fingerprint

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        path = Path(path)
        with atomic_write(path) as part:
            with part.open("wb") as file:
                torch.save({**checkpoint, "fingerprint": self.fingerprint}, file)
            if path.stem == LAST and path.exists():
                path.replace(checkpoint_path(path.parent, PREVIOUS))
        if path.stem == LAST:
            checkpoint_path(path.parent, MID_EPOCH).unlink(missing_ok=True)


class RelocatableModelCheckpoint(ModelCheckpoint):
    """Lightning's callback, for a training that goes on in a folder that was moved or copied since.

    Lightning itself drops the best score where the folder has another path, and takes a worse epoch for the best.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        old, new = str(state_dict.get("dirpath", self.dirpath)), str(self.dirpath)

        def moved(value: Any) -> Any:
            if isinstance(value, dict):
                return {moved(key): kept for key, kept in value.items()}
            return new + value.removeprefix(old) if isinstance(value, str) and value.startswith(old) else value

        super().load_state_dict({key: moved(value) for key, value in state_dict.items()})


def checkpoint_callbacks(folder: Path, has_val: bool, averaged: bool) -> list[ModelCheckpoint]:
    """Keep the last weights and, where there is a validation part, those of the epoch with the best accuracy on it.

    Where weights are `averaged`, Lightning puts the average into whole checkpoints only.
    """
    checkpoint = partial(RelocatableModelCheckpoint, folder, save_on_train_epoch_end=True, enable_version_counter=False)
    last = checkpoint(filename=LAST)
    if not has_val:
        return [last]
    return [checkpoint(filename=BEST, monitor="val/accuracy", mode="max", save_weights_only=not averaged), last]


class TimedCheckpoint(Callback):
    """Writes a checkpoint within an epoch, so many seconds after the last one.

    Lightning's own callback does it by the clock only where Lightning itself steps the optimizer.

    Args:
        folder: of the training.
        seconds: between two checkpoints; None: only at an epoch's end.
    """

    def __init__(self, folder: Path, seconds: float | None) -> None:
        self.path, self.seconds = checkpoint_path(folder, MID_EPOCH), seconds
        self.when = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.when = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.when = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.seconds is None:
            return
        # Gradients that are still being added up are in no checkpoint, and an epoch's end has one of its own.
        if (batch_idx + 1) % trainer.accumulate_grad_batches or trainer.is_last_batch:
            return
        is_due = time.monotonic() - self.when >= self.seconds
        if trainer.world_size > 1:
            # All take part in a checkpoint, so the first one's clock counts. Asking it takes as long as a small step.
            is_due = (batch_idx + 1) % CLOCK_SYNC_BATCHES == 0 and trainer.strategy.broadcast(is_due)
        if not is_due:
            return
        trainer.save_checkpoint(self.path)
        self.when = time.monotonic()


def find_resume_checkpoint(folder: Path, weights: Mapping[str, torch.Tensor], steps_per_chunk: int) -> Path | None:
    """The newest checkpoint in `folder` that a training can go on from; None where it begins anew.

    What is damaged, or of another training, is passed over and named. One from within an epoch counts the steps in
    chunks: with chunks of another size, the end of the epoch before is taken.
    """
    damaged = False
    for name in (MID_EPOCH, LAST, PREVIOUS):
        path = checkpoint_path(folder, name)
        if not path.is_file():
            continue
        try:
            checkpoint = read_checkpoint(path)
            _check_compatible(checkpoint, folder.name, weights)
        except UserError as refusal:
            warning(f"{refusal} It is passed over.")
            damaged = True
            continue
        if name == MID_EPOCH and checkpoint["epoch_so_far"]["steps_per_chunk"] != steps_per_chunk:
            info("The steps were run in another way when this epoch was broken off: it begins again.")
            continue
        return path
    if damaged:
        warning("No checkpoint is whole: the training begins anew.")
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, which is unpickled only as far as tensors and plain values go.

    Raises `Refusal` where the file is damaged: torch itself does not look at the checksums in it.
    """
    try:
        with ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise BadZipFile(f"wrong checksum of {damaged}")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or not isinstance(content["state_dict"], dict):
            raise ValueError("no checkpoint")
    except Exception as error:
        # A disk or a right that fails says nothing about the file: to begin anew would replace it.
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in UNREADABLE_ERRNOS:
            raise
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())[:100]}).") from error
    return content


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The module's state dict in a checkpoint. Raises `Refusal` where the file is damaged."""
    weights: dict[str, torch.Tensor] = read_checkpoint(path)["state_dict"]
    return weights


def _check_compatible(checkpoint: Mapping[str, Any], fingerprint: str, weights: Mapping[str, torch.Tensor]) -> None:
    shapes = {name: value.shape for name, value in weights.items()}
    if checkpoint.get("fingerprint") != fingerprint or shapes != {
        name: value.shape for name, value in checkpoint["state_dict"].items()
    }:
        raise UserError("A checkpoint of another training lies in its place.")
