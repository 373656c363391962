"""Keep a training in .cache/trainings: its checkpoints, the one to resume from and, once finished, its result.

Checkpoints are written atomically and read without unpickling code.

- `last`: end of the latest epoch.
- `previous`: end of the epoch before it.
- `mid_epoch`: inside an unfinished epoch, newer than both.
- `best`: the best value of the monitored metric.

history.csv has the metrics of the finished epochs.
"""

import csv
import errno
import json
import logging
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import pandas
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import TorchCheckpointIO

from cifar_pipeline.utils.atomic import atomic_replace_dir, atomic_write, exclusive_lock, exclusive_lock_if_free
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.file_hashes import hash_files
from cifar_pipeline.utils.text import one_line

log = logging.getLogger(__name__)

# Batches between two checks of the clock in a distributed training, in which the ranks have to agree.
EpochMetrics = dict[str, float]
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
            is_last = path.stem == LAST and path.parent.name == self.fingerprint
            if is_last and path.exists():
                path.replace(checkpoint_path(path.parent, PREVIOUS))
        if is_last:
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


def checkpoint_callbacks(
    folder: Path, monitor: str | None, mode: str, *, after_validation: bool, averaged: bool
) -> list[ModelCheckpoint]:
    """Return callbacks that save the last weights, and those with the best value of the monitored metric.

    Args:
        folder: directory of the checkpoints.
        monitor: the metric; None: the last weights only.
        mode: `max` or `min`.
        after_validation: save the best weights after a validation, not at an epoch's end: an epoch has none or several.
        averaged: save full checkpoints, because only into those does Lightning put averaged weights.
    """
    checkpoint = partial(RelocatableModelCheckpoint, folder, enable_version_counter=False)
    last = checkpoint(filename=LAST, save_on_train_epoch_end=True)
    if monitor is None:
        return [last]
    best = checkpoint(
        filename=BEST,
        monitor=monitor,
        mode=mode,
        save_on_train_epoch_end=not after_validation,
        save_weights_only=not averaged,
    )
    return [best, last]


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
        if (batch_idx + 1) % trainer.accumulate_grad_batches or trainer.is_last_batch or trainer.should_stop:
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
    in chunks, so it is skipped if the chunks have another size. Without the best weights that a checkpoint refers to
    there is none to resume from: a later epoch would be taken for the best one.
    """
    skipped, best = False, ""
    for name in (MID_EPOCH, LAST, PREVIOUS):
        path = checkpoint_path(folder, name)
        if not path.is_file():
            continue
        try:
            checkpoint = read_checkpoint(path)
            _check_compatible(path, checkpoint, weights)
        except UserError as error:
            log.warning(f"{error} Skipping it.")
            skipped = True
            continue
        if _has_best(checkpoint) and (best := best or _damage_of_best(folder)):
            break
        if name == MID_EPOCH and checkpoint["epoch_so_far"]["steps_per_chunk"] != steps_per_chunk:
            log.info("This epoch was interrupted under another engine or runtime.steps_per_chunk, so it starts again.")
            continue
        return path
    if best:
        log.warning(f"{best} With it the best weights so far are lost, so the training starts from scratch.")
        # Or the checkpoints of the new start would be mixed with those of the old one.
        for name in (MID_EPOCH, LAST, PREVIOUS, BEST):
            checkpoint_path(folder, name).unlink(missing_ok=True)
    elif not skipped and checkpoint_path(folder, BEST).is_file():
        log.warning(f"{checkpoint_path(folder, LAST)} is missing, so the training starts from scratch.")
    elif skipped:
        log.warning("No usable checkpoint is left, so the training starts from scratch.")
    return None


def _has_best(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether best weights had been saved when the checkpoint was."""
    states = checkpoint.get("callbacks", {}).values()
    paths = [str(state.get("best_model_path", "")) for state in states if isinstance(state, dict)]
    return any(Path(path).name == f"{BEST}.ckpt" for path in paths)


def _damage_of_best(folder: Path) -> str:
    """Return a sentence if the best checkpoint is missing or damaged, else an empty text."""
    path = checkpoint_path(folder, BEST)
    if not path.is_file():
        return f"{path} is missing."
    try:
        read_checkpoint(path)
    except UserError as error:
        return str(error)
    return ""


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


METADATA_FILE = "metadata.json"
HISTORY_FILE = "history.csv"
# Holds the SHA-256 of each file of the result.
RESULT_HASHES_FILE = "result.json"
# Holds the id of an unfinished rerun. While it exists, the checkpoints are the rerun's and the result is the older one.
RERUN_FILE = "rerun.json"
THREADS_FILE = "threads.txt"


@dataclass(frozen=True)
class RunDir:
    """Files of the training with one fingerprint.

    `last.ckpt` and `best.ckpt` are its checkpoints, `threads.txt` has the number of threads that computed them, and
    `result/` is its result with the exported models. During a rerun there is also `rerun.json`, and `result/` is that
    of the previous training.
    """

    path: Path

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the training, which is the name of its directory."""
        return self.path.name

    @property
    def result(self) -> Path:
        """Directory of the result: a model folder per checkpoint, metadata.json and history.csv."""
        return self.path / "result"

    @property
    def is_finished(self) -> bool:
        """Whether the training has finished at least once."""
        return self.result.is_dir()

    @property
    def has_unfinished_rerun(self) -> bool:
        """Whether a rerun was started that has not finished."""
        return (self.path / RERUN_FILE).is_file()

    def checkpoints(self) -> list[str]:
        """Return which of `last` and `best` exist; without a validation split there is no best."""
        return [name for name in (LAST, BEST) if self.checkpoint(name).is_file()]

    def checkpoint(self, name: str) -> Path:
        """Return the path of the checkpoint with this name."""
        return checkpoint_path(self.path, name)

    def record_threads(self, threads: int) -> None:
        """Write the number of threads with which the training begins."""
        with atomic_write(self.path / THREADS_FILE) as tmp:
            tmp.write_text(f"{threads}\n", encoding="utf-8")

    def resumed_threads(self) -> int | None:
        """Return the number of threads with which the training began; None if it has no checkpoint to resume from."""
        if not any(self.checkpoint(name).is_file() for name in (MID_EPOCH, LAST, PREVIOUS)):
            return None
        try:
            return max(1, int((self.path / THREADS_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None

    @contextmanager
    def lock(self, rerun: bool) -> Iterator[str]:
        """Lock the directory against other processes, and yield the id of the rerun to train (empty: none).

        With `rerun`, an interrupted rerun is resumed, or a new one starts: the old checkpoints are removed at
        once, and the old result stays until the new one is written. Without `rerun`, an interrupted rerun is resumed
        only if there is no result.
        """
        with exclusive_lock(self.path):
            self.path.mkdir(exist_ok=True)
            rerun_id = self._start_or_resume_rerun(rerun)
            yield rerun_id
            if rerun_id:
                (self.path / RERUN_FILE).unlink(missing_ok=True)

    def _start_or_resume_rerun(self, requested: bool) -> str:
        if self.has_unfinished_rerun:
            if self.is_finished and not requested:
                log.info("A rerun of this training was interrupted; `rerun=true` resumes it.")
                return ""
            log.info(
                "Resuming an interrupted rerun of this training; once it has finished, `rerun=true` starts another."
            )
            try:
                return str(json.loads((self.path / RERUN_FILE).read_text(encoding="utf-8"))["id"])
            except (ValueError, KeyError, TypeError):
                log.warning(f"{self.path / RERUN_FILE} is damaged: the rerun starts again.")
        elif not requested:
            return ""
        # Removed before rerun.json is written, or they would be taken for checkpoints of the rerun.
        for name in (MID_EPOCH, LAST, PREVIOUS, BEST):
            self.checkpoint(name).unlink(missing_ok=True)
        rerun_id = uuid.uuid4().hex
        with atomic_write(self.path / RERUN_FILE) as tmp:
            tmp.write_text(json.dumps({"id": rerun_id}) + "\n", encoding="utf-8")
        return rerun_id

    @contextmanager
    def write_result(self, metadata: Mapping[str, Any], rows: list[EpochMetrics]) -> Iterator[Path]:
        """Yield a directory for the exported models, which becomes the result together with metadata and history."""
        with atomic_replace_dir(self.result) as tmp:
            yield tmp
            (tmp / METADATA_FILE).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
            write_history(rows, tmp / HISTORY_FILE)
            hashes = hash_files(tmp)
        with atomic_write(self.path / RESULT_HASHES_FILE) as tmp_hashes:
            tmp_hashes.write_text(json.dumps(hashes, indent=0) + "\n", encoding="utf-8")

    def drop_damaged_result(self) -> None:
        """Remove a result of which a file is missing or has changed; the training makes it again from its checkpoints.

        The result of another process that is training is left alone.
        """
        if not self.is_finished:
            return
        with exclusive_lock_if_free(self.path) as is_free:
            if is_free and (damage := self._damage_of_result()):
                log.warning(f"{damage}: making the result of this training again.")
                shutil.rmtree(self.result)

    def _damage_of_result(self) -> str:
        path = self.path / RESULT_HASHES_FILE
        try:
            expected = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(expected, dict):
                raise ValueError("not an object")
        except FileNotFoundError:
            return f"{path} is missing"
        except ValueError:
            return f"{path} is damaged"
        actual = hash_files(self.result)
        for name in sorted({*expected, *actual}):
            if name not in actual:
                return f"{self.result / name} is missing"
            if actual[name] != expected.get(name):
                return f"{self.result / name} has changed since it was written"
        return ""

    def metadata(self) -> dict[str, Any]:
        """Read the metadata of the finished training."""
        metadata: dict[str, Any] = json.loads((self.result / METADATA_FILE).read_text(encoding="utf-8"))
        return metadata

    def rows(self) -> list[EpochMetrics]:
        """Read the metrics of each epoch of the finished training."""
        with (self.result / HISTORY_FILE).open(encoding="utf-8", newline="") as file:
            # Cells are empty where a callback has logged a metric in other epochs only.
            return [{key: float(cell) for key, cell in row.items() if cell} for row in csv.DictReader(file)]

    def copy_to(self, root: Path, run: Mapping[str, str]) -> None:
        """Copy the result to `root`/models, with id and name of the MLflow run, and its history to `root`/reports.

        The history is in models/ as well, because a training that has not finished writes to reports/history.csv.
        """
        models = root / "models"
        with exclusive_lock(models), atomic_replace_dir(models) as tmp:
            shutil.copytree(self.result, tmp, dirs_exist_ok=True)
            (tmp / "run.json").write_text(json.dumps(dict(run), indent=2) + "\n", encoding="utf-8")
            history = reports_history(root)
            history.parent.mkdir(parents=True, exist_ok=True)
            with exclusive_lock(history.parent), atomic_write(history) as tmp_history:
                shutil.copyfile(tmp / HISTORY_FILE, tmp_history)

    def prune(self, keep: int) -> None:
        """Remove old finished trainings so that the newest `keep` are left, including this one.

        Trainings that another process has locked, and unfinished trainings and reruns, are kept.
        """
        others = [RunDir(path) for path in self.path.parent.iterdir() if path.is_dir() and path != self.path]
        finished = [(other.finished_at(), other) for other in others if other.is_removable]
        finished.sort(key=itemgetter(0))
        for finished_at, other in finished[: max(0, len(finished) + 1 - keep)]:
            with exclusive_lock_if_free(other.path) as is_free:
                # Checked again, because the process that had the lock may have started or finished a rerun.
                if is_free and other.is_removable and other.finished_at() == finished_at:
                    shutil.rmtree(other.path, ignore_errors=True)

    @property
    def is_removable(self) -> bool:
        """Whether the training has finished, and no rerun would lose its checkpoints."""
        return self.is_finished and not self.has_unfinished_rerun

    def finished_at(self) -> float:
        """Return when the training finished, in seconds since the epoch; 0 if its directory is gone."""
        try:
            return self.result.stat().st_mtime
        except FileNotFoundError:
            return 0.0


# Keys: `epoch` (counted from 1), `train/loss`, `train/accuracy`, `val/loss` and `val/accuracy` (with a validation
# split), metrics that a user's callback logs, `lr`, `images_per_second`.


def loggable(row: EpochMetrics) -> tuple[EpochMetrics, int]:
    """Return the metrics of a row, and the epoch under which they are logged."""
    return {key: value for key, value in row.items() if key != "epoch"}, int(row["epoch"])


def format_epoch(row: EpochMetrics, epochs: int) -> str:
    """Format a row for the console."""
    shown = [key for key in row if key.startswith("val/") or key in ("train/loss", "train/accuracy")]
    metrics = [f"{key} {row[key]:{'.2%' if key.endswith('accuracy') else '.4f'}}" for key in shown]
    return "  ".join([f"epoch {row['epoch']:.0f}/{epochs}", *metrics, f"{row['images_per_second']:,.0f} images/s"])


def write_history(rows: list[EpochMetrics], path: Path) -> None:
    """Write the rows as a CSV file whose first column is the epoch, atomically."""
    with atomic_write(path) as tmp:
        pandas.DataFrame(rows).astype({"epoch": int}).to_csv(tmp, index=False)


def reports_history(root: Path) -> Path:
    """Return the path of the history that a training writes below `root` while it runs, and DVC plots."""
    return root / "reports" / HISTORY_FILE
