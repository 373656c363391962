"""The folder in .cache/trainings in which a training keeps its checkpoints and, once finished, its result."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar_pipeline.files import only_one, whole_file, whole_folder
from cifar_pipeline.training.checkpoints import BEST, LAST, checkpoint_path
from cifar_pipeline.training.history import Row, write_history

FACTS = "training.json"
HISTORY = "history.json"


@dataclass(frozen=True)
class TrainingFolder:
    """Everything one identity has: `last.ckpt`, `best.ckpt` and, at the end, `result/` with the exported models."""

    path: Path

    @property
    def identity(self) -> str:
        """Whose folder this is."""
        return self.path.name

    @property
    def result(self) -> Path:
        """What the finished training leaves: a model folder for each checkpoint, the facts, and a row per epoch."""
        return self.path / "result"

    @property
    def is_finished(self) -> bool:
        """Whether the training has come to its end."""
        return self.result.is_dir()

    def checkpoints(self) -> list[str]:
        """Which of `last` and `best` are there; without a validation part there is no best."""
        return [name for name in (LAST, BEST) if self.checkpoint(name).is_file()]

    def checkpoint(self, name: str) -> Path:
        """Where the checkpoint `last` or `best` lies."""
        return checkpoint_path(self.path, name)

    @contextmanager
    def held(self, rerun: bool) -> Iterator[None]:
        """Keep other processes out; `rerun` clears what is there."""
        with only_one(self.path):
            if rerun:
                shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir(exist_ok=True)
            yield

    @contextmanager
    def finishing(self, facts: Mapping[str, Any], rows: list[Row]) -> Iterator[Path]:
        """Yield a folder for the exported models; with the facts and rows it becomes the result."""
        with whole_folder(self.result) as part:
            yield part
            (part / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
            (part / HISTORY).write_text(json.dumps(rows, indent=1) + "\n")

    def rows(self) -> list[Row]:
        """The finished training's row per epoch."""
        rows: list[Row] = json.loads((self.result / HISTORY).read_text())
        return rows

    def publish(self, root: Path, run: Mapping[str, str]) -> None:
        """Copy the result to `root`/models, with id and name of its MLflow run, and the history to `root`/reports."""
        models = root / "models"
        with only_one(models), whole_folder(models) as part:
            shutil.copytree(self.result, part, dirs_exist_ok=True)
            (part / HISTORY).unlink()
            (part / "run.json").write_text(json.dumps(dict(run), indent=2) + "\n")
        with whole_file(root / "reports" / "history.csv") as part:
            write_history(self.rows(), part)

    def clear_others(self, keep: int) -> None:
        """Remove the finished trainings beside this one but for the newest `keep`; unfinished ones stay."""
        others = [TrainingFolder(path) for path in self.path.parent.iterdir() if path.is_dir() and path != self.path]
        finished = sorted((other for other in others if other.is_finished), key=TrainingFolder.finished_at)
        for other in finished[: max(0, len(finished) + 1 - keep)]:
            # A job beside this one may be about the same.
            shutil.rmtree(other.path, ignore_errors=True)

    def finished_at(self) -> float:
        """When the training came to its end; 0 where its folder is gone."""
        try:
            return self.result.stat().st_mtime
        except FileNotFoundError:
            return 0.0
