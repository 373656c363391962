"""Runs a stage as `python src/STAGE.py ...` does, and kills it at one exact moment.

    python driver.py KIND NUMBER src/STAGE.py [arguments]

KIND is what the process is killed at, for the NUMBER-th time that it does it; `start-up`: after NUMBER seconds,
`never`: not at all. The steps of a training are noted in steps.txt of the working directory, a line for each.
"""

import io
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

KIND, NUMBER, SCRIPT = sys.argv[1], float(sys.argv[2]), sys.argv[3]
STEPS = Path("steps.txt")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


class Countdown:
    """True at the NUMBER-th question."""

    def __init__(self) -> None:
        self.left = NUMBER

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


def before(owner: Any, name: str, now: Countdown) -> None:
    """Kill the process when `owner.name` is called."""
    usual = getattr(owner, name)

    def call(*given: Any, **options: Any) -> Any:
        if now():
            die()
        return usual(*given, **options)

    setattr(owner, name, call)


def after(owner: Any, name: str, now: Countdown) -> None:
    """Kill the process when `owner.name` has done its work, and before anybody learns of it."""
    usual = getattr(owner, name)

    def call(*given: Any, **options: Any) -> Any:
        result = usual(*given, **options)
        if now():
            die()
        return result

    setattr(owner, name, call)


def at_step(now: Countdown) -> None:
    """In the middle of a step, when the loss is computed and the weights are not yet changed."""
    from cifar_pipeline.training.module import Sums

    before(Sums, "add", now)


def at_half_a_checkpoint(now: Countdown) -> None:
    import torch

    usual = torch.save

    def save(content: Any, file: Any, *given: Any, **options: Any) -> None:
        if not now():
            usual(content, file, *given, **options)
            return
        whole = io.BytesIO()
        usual(content, whole)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        die()

    torch.save = save


def at_rename(now: Countdown) -> None:
    """After a rename: where there are two, between them."""
    after(Path, "replace", now)


def at_folder_rename(now: Countdown) -> None:
    """After a folder has got another name: the old one aside, the new one in its place."""
    after(Path, "rename", now)


def at_log(now: Countdown) -> None:
    """Once the store has taken an epoch's metrics."""
    from mlflow import MlflowClient

    after(MlflowClient, "log_batch", now)


def at_unsent_log(now: Countdown) -> None:
    """Before the store has taken them."""
    from mlflow import MlflowClient

    before(MlflowClient, "log_batch", now)


def at_half_a_transaction(now: Countdown) -> None:
    """When the rows are written to the database and not committed."""
    from sqlalchemy.orm import Session

    before(Session, "commit", now)


def at_export(now: Countdown) -> None:
    """When a model is exported, and the training is not yet known as finished."""
    import cifar_pipeline.inference.export as export

    after(export, "export_model", now)


def at_copy(now: Countdown) -> None:
    """When a file or folder of the result is copied to models/."""
    import shutil

    after(shutil, "copystat", now)


def at_array(now: Countdown) -> None:
    """When an array of the processed data set is written."""
    import cifar_pipeline.data.dataset as dataset

    after(dataset, "_write", now)


def at_figure(now: Countdown) -> None:
    """When a figure is drawn."""
    from matplotlib.figure import Figure

    after(Figure, "savefig", now)


KINDS: dict[str, Callable[[Countdown], None]] = {
    "step": at_step,
    "half a checkpoint": at_half_a_checkpoint,
    "rename": at_rename,
    "folder rename": at_folder_rename,
    "log": at_log,
    "unsent log": at_unsent_log,
    "half a transaction": at_half_a_transaction,
    "export": at_export,
    "copy": at_copy,
    "array": at_array,
    "figure": at_figure,
}


def note_steps() -> None:
    """Write down which step begins, as the training counts them."""
    from cifar_pipeline.training.block_module import BlockClassifier
    from cifar_pipeline.training.module import Classifier

    notes = os.open(STEPS, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for kind in (Classifier, BlockClassifier):
        usual = kind.__dict__["training_step"]

        def step(self: Any, batch: Any, index: int, usual: Any = usual) -> Any:
            os.write(notes, f"{self.current_epoch}:{index}\n".encode())
            return usual(self, batch, index)

        kind.training_step = step  # type: ignore[method-assign]


sys.argv = sys.argv[3:]
sys.path[0] = str(Path(SCRIPT).resolve().parent)
if KIND == "start-up":
    timer = threading.Timer(NUMBER, die)
    timer.daemon = True
    timer.start()
elif KIND in KINDS:
    KINDS[KIND](Countdown())
if SCRIPT.endswith("train.py") and KIND != "start-up":
    note_steps()
runpy.run_path(SCRIPT, run_name="__main__")
