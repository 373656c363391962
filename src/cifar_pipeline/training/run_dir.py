"""The folder in .cache/trainings in which a training keeps its checkpoints and, once finished, its result."""

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
# Says that a rerun is under way, and which: the checkpoints in the folder are the rerun's, the result is the older one.
RERUN_FILE = "rerun.json"


@dataclass(frozen=True)
class RunDir:
    """Everything one fingerprint has: `last.ckpt`, `best.ckpt` and, at the end, `result/` with the exported models.

    During a rerun `rerun.json` is there as well, and `result/` is that of the training before.
    """

    path: Path

    @property
    def fingerprint(self) -> str:
        """Whose folder this is."""
        return self.path.name

    @property
    def result(self) -> Path:
        """What the finished training leaves: a model folder for each checkpoint, the facts, and a row per epoch."""
        return self.path / "result"

    @property
    def is_finished(self) -> bool:
        """Whether the training has come to its end, at least once."""
        return self.result.is_dir()

    @property
    def is_in_a_rerun(self) -> bool:
        """Whether a rerun was begun that has not finished."""
        return (self.path / RERUN_FILE).is_file()

    def checkpoints(self) -> list[str]:
        """Which of `last` and `best` are there; without a validation part there is no best."""
        return [name for name in (LAST, BEST) if self.checkpoint(name).is_file()]

    def checkpoint(self, name: str) -> Path:
        """Where the checkpoint `last` or `best` lies."""
        return checkpoint_path(self.path, name)

    @contextmanager
    def lock(self, rerun: bool) -> Iterator[str]:
        """Keep other processes out, and yield the id of the rerun that is to be trained; empty: none.

        `rerun` goes on with one that was broken off, or begins one: without the checkpoints of before, but with their
        result, until the block ends well. Without `rerun`, one that was broken off is gone on with only where there is
        no result.
        """
        with exclusive_lock(self.path):
            self.path.mkdir(exist_ok=True)
            current = self._rerun(rerun)
            yield current
            if current:
                (self.path / RERUN_FILE).unlink(missing_ok=True)

    def _rerun(self, wanted: bool) -> str:
        if self.is_in_a_rerun:
            if self.is_finished and not wanted:
                info("A rerun of this training was broken off: it waits, and `rerun=true` goes on with it.")
                return ""
            info("A rerun of this training was broken off: it goes on; after its end `rerun=true` begins another.")
            return str(json.loads((self.path / RERUN_FILE).read_text())["id"])
        if not wanted:
            return ""
        # First of all: noted before they are gone, they would be taken for the rerun's own.
        for name in (MID_EPOCH, LAST, PREVIOUS, BEST):
            self.checkpoint(name).unlink(missing_ok=True)
        new = uuid.uuid4().hex
        with atomic_write(self.path / RERUN_FILE) as part:
            part.write_text(json.dumps({"id": new}) + "\n")
        return new

    @contextmanager
    def write_result(self, facts: Mapping[str, Any], rows: list[EpochMetrics]) -> Iterator[Path]:
        """Yield a folder for the exported models; with the facts and rows it becomes the result."""
        with atomic_replace_dir(self.result) as part:
            yield part
            (part / METADATA_FILE).write_text(json.dumps(facts, indent=2) + "\n")
            (part / HISTORY_FILE).write_text(json.dumps(rows, indent=1) + "\n")

    def facts(self) -> dict[str, Any]:
        """What is known about the finished training."""
        facts: dict[str, Any] = json.loads((self.result / METADATA_FILE).read_text())
        return facts

    def rows(self) -> list[EpochMetrics]:
        """The finished training's row per epoch."""
        rows: list[EpochMetrics] = json.loads((self.result / HISTORY_FILE).read_text())
        return rows

    def copy_to(self, root: Path, run: Mapping[str, str]) -> None:
        """Copy the result to `root`/models, with id and name of its MLflow run, and the history to `root`/reports."""
        models = root / "models"
        with exclusive_lock(models), atomic_replace_dir(models) as part:
            shutil.copytree(self.result, part, dirs_exist_ok=True)
            (part / HISTORY_FILE).unlink()
            (part / "run.json").write_text(json.dumps(dict(run), indent=2) + "\n")
            history = self.rows()
            with atomic_write(root / "reports" / "history.csv") as file:
                write_history(history, file)

    def prune(self, keep: int) -> None:
        """Remove the finished trainings beside this one but for the newest `keep`.

        Those that some process holds stay, and so does what has not finished, a rerun too.
        """
        others = [RunDir(path) for path in self.path.parent.iterdir() if path.is_dir() and path != self.path]
        finished = [(other.finished_at(), other) for other in others if other.is_at_rest]
        finished.sort(key=itemgetter(0))
        for finished_at, other in finished[: max(0, len(finished) + 1 - keep)]:
            with exclusive_lock_if_free(other.path) as is_free:
                # Asked again: whoever held it until now may have begun a rerun, or finished one.
                if is_free and other.is_at_rest and other.finished_at() == finished_at:
                    shutil.rmtree(other.path, ignore_errors=True)

    @property
    def is_at_rest(self) -> bool:
        """Whether there is a result, and no rerun that would lose its checkpoints."""
        return self.is_finished and not self.is_in_a_rerun

    def finished_at(self) -> float:
        """When the training came to its end; 0 where its folder is gone."""
        try:
            return self.result.stat().st_mtime
        except FileNotFoundError:
            return 0.0
