"""Directory of a training in .cache/trainings: its checkpoints and, once finished, its result."""

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from cifar_pipeline.training.callbacks import EpochMetrics, write_history
from cifar_pipeline.training.checkpoints import BEST, LAST, MID_EPOCH, PREVIOUS, checkpoint_path
from cifar_pipeline.utils.atomic import atomic_replace_dir, atomic_write, exclusive_lock, exclusive_lock_if_free
from cifar_pipeline.utils.console import info

METADATA_FILE = "metadata.json"
HISTORY_FILE = "history.json"
# Holds the id of an unfinished rerun. While it exists, the checkpoints are the rerun's and the result is the older one.
RERUN_FILE = "rerun.json"


@dataclass(frozen=True)
class RunDir:
    """Files of the training with one fingerprint.

    `last.ckpt` and `best.ckpt` are its checkpoints, `result/` is its result with the exported models. During a rerun
    there is also `rerun.json`, and `result/` is that of the previous training.
    """

    path: Path

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the training, which is the name of its directory."""
        return self.path.name

    @property
    def result(self) -> Path:
        """Directory of the result: a model folder per checkpoint, metadata.json and history.json."""
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
                info("A rerun of this training was interrupted; `rerun=true` resumes it.")
                return ""
            info("Resuming an interrupted rerun of this training; once it has finished, `rerun=true` starts another.")
            return str(json.loads((self.path / RERUN_FILE).read_text())["id"])
        if not requested:
            return ""
        # Removed before rerun.json is written, or they would be taken for checkpoints of the rerun.
        for name in (MID_EPOCH, LAST, PREVIOUS, BEST):
            self.checkpoint(name).unlink(missing_ok=True)
        rerun_id = uuid.uuid4().hex
        with atomic_write(self.path / RERUN_FILE) as tmp:
            tmp.write_text(json.dumps({"id": rerun_id}) + "\n")
        return rerun_id

    @contextmanager
    def write_result(self, metadata: Mapping[str, Any], rows: list[EpochMetrics]) -> Iterator[Path]:
        """Yield a directory for the exported models, which becomes the result together with metadata and history."""
        with atomic_replace_dir(self.result) as tmp:
            yield tmp
            (tmp / METADATA_FILE).write_text(json.dumps(metadata, indent=2) + "\n")
            (tmp / HISTORY_FILE).write_text(json.dumps(rows, indent=1) + "\n")

    def metadata(self) -> dict[str, Any]:
        """Read the metadata of the finished training."""
        metadata: dict[str, Any] = json.loads((self.result / METADATA_FILE).read_text())
        return metadata

    def rows(self) -> list[EpochMetrics]:
        """Read the metrics of each epoch of the finished training."""
        rows: list[EpochMetrics] = json.loads((self.result / HISTORY_FILE).read_text())
        return rows

    def copy_to(self, root: Path, run: Mapping[str, str]) -> None:
        """Copy the result to `root`/models, with id and name of the MLflow run, and the history to `root`/reports."""
        models = root / "models"
        with exclusive_lock(models), atomic_replace_dir(models) as tmp:
            shutil.copytree(self.result, tmp, dirs_exist_ok=True)
            (tmp / HISTORY_FILE).unlink()
            (tmp / "run.json").write_text(json.dumps(dict(run), indent=2) + "\n")
            history = self.rows()
            with atomic_write(root / "reports" / "history.csv") as tmp_history:
                write_history(history, tmp_history)

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
