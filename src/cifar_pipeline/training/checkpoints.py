"""Write checkpoints atomically, read them without unpickling code, and find the one to resume from.

- `last`: end of the latest epoch.
- `previous`: end of the epoch before it.
- `mid_epoch`: inside an unfinished epoch, newer than both.
- `best`: the epoch with the best validation accuracy.
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
from cifar_pipeline.utils.text import one_line

# Batches between two checks of the clock in a distributed training, in which the ranks have to agree.
CLOCK_SYNC_BATCHES = 10
# Errors of the system, which mean nothing about the file.
UNREADABLE_ERRNOS = {errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
MID_EPOCH, LAST, PREVIOUS, BEST = "mid_epoch", "last", "previous", "best"


def checkpoint_path(folder: Path, name: str) -> Path:
    """Return the path of the checkpoint with this name."""
    return folder / f"{name}.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints atomically: whenever the process is killed, the old or the new file is intact.

    Lightning's own plugin copies the file, and does not sync it to disk.

    Args:
        fingerprint: fingerprint of the training, saved in each file so that no other training resumes from it.
    """

    def __init__(self, fingerprint: str) -> None:
        super().__init__()
        self.fingerprint = fingerprint

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        path = Path(path)
        with atomic_write(path) as tmp:
            with tmp.open("wb") as file:
                torch.save({**checkpoint, "fingerprint": self.fingerprint}, file)
            if path.stem == LAST and path.exists():
                path.replace(checkpoint_path(path.parent, PREVIOUS))
        if path.stem == LAST:
            checkpoint_path(path.parent, MID_EPOCH).unlink(missing_ok=True)


class RelocatableModelCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint that keeps the best score when its directory was moved or copied.

    Lightning drops the best score if the directory has another path, so that a worse epoch would become the best.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        old, new = str(state_dict.get("dirpath", self.dirpath)), str(self.dirpath)

        def relocate(value: Any) -> Any:
            if isinstance(value, dict):
                return {relocate(key): score for key, score in value.items()}
            return new + value.removeprefix(old) if isinstance(value, str) and value.startswith(old) else value

        super().load_state_dict({key: relocate(value) for key, value in state_dict.items()})


def checkpoint_callbacks(folder: Path, has_val: bool, averaged: bool) -> list[ModelCheckpoint]:
    """Return callbacks that save the last weights and, with a validation split, those of the best validation accuracy.

    With `averaged` weights full checkpoints are saved, because only into those does Lightning put the average.
    """
    checkpoint = partial(RelocatableModelCheckpoint, folder, save_on_train_epoch_end=True, enable_version_counter=False)
    last = checkpoint(filename=LAST)
    if not has_val:
        return [last]
    return [checkpoint(filename=BEST, monitor="val/accuracy", mode="max", save_weights_only=not averaged), last]


class TimedCheckpoint(Callback):
    """Save a checkpoint inside an epoch whenever `seconds` have passed since the last one.

    Lightning's `train_time_interval` does nothing under manual optimization (Lightning-AI/pytorch-lightning#21699).

    Args:
        folder: directory of the checkpoints.
        seconds: between two checkpoints; None: never inside an epoch.
    """

    def __init__(self, folder: Path, seconds: float | None) -> None:
        self.path, self.seconds = checkpoint_path(folder, MID_EPOCH), seconds
        self.last_saved = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last_saved = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last_saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.seconds is None:
            return
        # Accumulated gradients are not in a checkpoint, and an epoch's end has its own checkpoint.
        if (batch_idx + 1) % trainer.accumulate_grad_batches or trainer.is_last_batch:
            return
        is_due = time.monotonic() - self.last_saved >= self.seconds
        if trainer.world_size > 1:
            # All ranks take part in a checkpoint, so rank zero decides. The broadcast takes as long as a small step.
            is_due = (batch_idx + 1) % CLOCK_SYNC_BATCHES == 0 and trainer.strategy.broadcast(is_due)
        if not is_due:
            return
        trainer.save_checkpoint(self.path)
        self.last_saved = time.monotonic()


def find_resume_checkpoint(folder: Path, weights: Mapping[str, torch.Tensor], steps_per_chunk: int) -> Path | None:
    """Return the newest checkpoint in `folder` that the training can resume from; None if there is none.

    A damaged checkpoint, or one of another training, is skipped with a warning. A mid-epoch checkpoint counts its steps
    in chunks, so it is skipped if the chunks have another size.
    """
    skipped = False
    for name in (MID_EPOCH, LAST, PREVIOUS):
        path = checkpoint_path(folder, name)
        if not path.is_file():
            continue
        try:
            checkpoint = read_checkpoint(path)
            _check_compatible(path, checkpoint, weights)
        except UserError as error:
            warning(f"{error} Skipping it.")
            skipped = True
            continue
        if name == MID_EPOCH and checkpoint["epoch_so_far"]["steps_per_chunk"] != steps_per_chunk:
            info("This epoch was interrupted under another engine or runtime.steps_per_chunk, so it starts again.")
            continue
        return path
    if skipped:
        warning("No usable checkpoint is left, so the training starts from scratch.")
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint, unpickling only tensors and plain values.

    Raises:
        UserError: the file is damaged. torch does not check the checksums in it, so they are checked here.
        OSError: the disk or its permissions failed.
    """
    try:
        with ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise BadZipFile(f"wrong checksum of {damaged}")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or not isinstance(content["state_dict"], dict):
            raise ValueError("not a checkpoint")
    except Exception as error:
        # If the disk fails, the file may be intact: starting from scratch would overwrite it.
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in UNREADABLE_ERRNOS:
            raise
        raise UserError(f"{path} is damaged ({one_line(error)[:100]}).") from error
    return content


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Load the state dict of the module from a checkpoint. Raises `UserError` if the file is damaged."""
    weights: dict[str, torch.Tensor] = read_checkpoint(path)["state_dict"]
    return weights


def _check_compatible(path: Path, checkpoint: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
    shapes = {name: value.shape for name, value in weights.items()}
    if checkpoint.get("fingerprint") != path.parent.name or shapes != {
        name: value.shape for name, value in checkpoint["state_dict"].items()
    }:
        raise UserError(f"{path} belongs to another training.")
