"""Runs a stage as `python src/STAGE.py ...` does, and kills or stops it at one exact moment.

    python driver.py KIND NUMBER src/STAGE.py [arguments]

KIND is what the process is killed at, for the NUMBER-th time that it does it; `start-up`: after NUMBER seconds,
`SIGTERM` and `Ctrl-C`: in its NUMBER-th step, by that signal and not by SIGKILL; `never`: not at all. The steps of a
training are noted in steps.txt of the working directory, a line for each.
"""

import io
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

KIND, NUMBER, SCRIPT = sys.argv[1], float(sys.argv[2]), sys.argv[3]
ASKED = {"SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}
STEPS = Path("steps.txt")


def die() -> None:
    os.kill(os.getpid(), ASKED.get(KIND, signal.SIGKILL))
    if KIND not in ASKED:
        signal.pause()


class Countdown:
    """True at the NUMBER-th question."""

    def __init__(self) -> None:
        self.left = NUMBER

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


def at_call(place: str, now: Countdown, done: bool) -> None:
    """Kill the process at a call of the function at `place`: before its work, or when it is `done` and nobody knows."""
    owner, name, usual = found(place)

    def call(*given: Any, **options: Any) -> Any:
        if not done and now():
            die()
        result = usual(*given, **options)
        if done and now():
            die()
        return result

    setattr(owner, name, call)


before, after = partial(at_call, done=False), partial(at_call, done=True)


def found(place: str) -> tuple[Any, str, Callable[..., Any]]:
    """The module or class that has the function at `place`, its name there, and the function itself."""
    path, _, name = place.rpartition(".")
    owner = resolve_name(path)
    return owner, name, getattr(owner, name)


def at_half_of_what_is_saved(place: str, now: Countdown) -> None:
    """Kill the process when the function at `place` has written half of what it was given to write to a file."""
    owner, name, usual = found(place)

    def save(content: Any, file: Any, *given: Any, **options: Any) -> None:
        if not now():
            usual(content, file, *given, **options)
            return
        whole = io.BytesIO()
        usual(content, whole)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        die()

    setattr(owner, name, save)


# In the middle of a step, when the loss is computed and the weights are not yet changed.
IN_A_STEP = (before, "cifar_pipeline.training.module.RunningMetrics.add")
KINDS: dict[str, tuple[Callable[[str, Countdown], None], str]] = {
    "step": IN_A_STEP,
    **dict.fromkeys(ASKED, IN_A_STEP),
    "half a checkpoint": (at_half_of_what_is_saved, "torch.save"),
    # Between the two renames of a checkpoint; before a new folder takes the place of the old one, and when it has.
    "rename": (after, "pathlib.Path.replace"),
    "unexchanged": (before, "cifar_pipeline.utils.atomic._swap_dirs"),
    "exchanged": (after, "cifar_pipeline.utils.atomic._swap_dirs"),
    # Once the store has taken an epoch's metrics, before it has, and when they are written and not committed.
    "log": (after, "mlflow.MlflowClient.log_batch"),
    "unsent log": (before, "mlflow.MlflowClient.log_batch"),
    "half a transaction": (before, "sqlalchemy.orm.Session.commit"),
    # When a model is exported, and the training is not yet known as finished; when the result is copied to models/.
    "export": (after, "cifar_pipeline.inference.onnx_export.save_model"),
    "copy": (after, "shutil.copystat"),
    "raw array": (after, "numpy.save"),
    "array": (after, "cifar_pipeline.data.preprocessing._write"),
    "figure": (after, "matplotlib.figure.Figure.savefig"),
}


def note_steps() -> None:
    """Write down which step begins, as the training counts them."""
    from cifar_pipeline.training.compiled.engine import CompiledClassifier
    from cifar_pipeline.training.module import Classifier

    notes = os.open(STEPS, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for kind in (Classifier, CompiledClassifier):
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
    kill_at, place = KINDS[KIND]
    kill_at(place, Countdown())
if SCRIPT.endswith("train.py") and KIND != "start-up":
    note_steps()
runpy.run_path(SCRIPT, run_name="__main__")
