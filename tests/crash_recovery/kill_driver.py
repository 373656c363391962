"""Run a stage like `python src/STAGE.py ...`, and kill or stop it at one exact moment.

    python kill_driver.py EVENT NUMBER src/STAGE.py [arguments]

The process is killed at the NUMBER-th occurrence of EVENT. `start-up`: after NUMBER seconds; `SIGTERM` and `Ctrl-C`: in
its NUMBER-th step, by that signal instead of SIGKILL; `never`: not at all. The steps of a training are written to
steps.txt in the working directory, one per line.
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

EVENT, NUMBER, SCRIPT = sys.argv[1], float(sys.argv[2]), sys.argv[3]
SIGNALS = {"SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}
STEPS_FILE = Path("steps.txt")


def die() -> None:
    os.kill(os.getpid(), SIGNALS.get(EVENT, signal.SIGKILL))
    if EVENT not in SIGNALS:
        signal.pause()


class Countdown:
    """Return True on the NUMBER-th call."""

    def __init__(self) -> None:
        self.left = NUMBER

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


def at_call(path: str, is_due: Countdown, done: bool) -> None:
    """Kill the process at a call of the function at `path`, before it runs or, with `done`, after it has run."""
    owner, name, original = resolve_function(path)

    def call(*args: Any, **kwargs: Any) -> Any:
        if not done and is_due():
            die()
        result = original(*args, **kwargs)
        if done and is_due():
            die()
        return result

    setattr(owner, name, call)


before, after = partial(at_call, done=False), partial(at_call, done=True)


def resolve_function(dotted_path: str) -> tuple[Any, str, Callable[..., Any]]:
    """Return the module or class that holds a function, its name there, and the function."""
    path, _, name = dotted_path.rpartition(".")
    owner = resolve_name(path)
    return owner, name, getattr(owner, name)


def at_half_of_what_is_saved(path: str, is_due: Countdown) -> None:
    """Kill the process when the function at `path` has written half of its content to a file."""
    owner, name, original = resolve_function(path)

    def save(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        if not is_due():
            original(content, file, *args, **kwargs)
            return
        buffer = io.BytesIO()
        original(content, buffer)
        file.write(buffer.getvalue()[: len(buffer.getvalue()) // 2])
        file.flush()
        die()

    setattr(owner, name, save)


# In a step, after the loss is computed and before the weights change.
IN_A_STEP = (before, "cifar_pipeline.training.module.RunningMetrics.add")
EVENTS: dict[str, tuple[Callable[[str, Countdown], None], str]] = {
    "step": IN_A_STEP,
    **dict.fromkeys(SIGNALS, IN_A_STEP),
    "half a checkpoint": (at_half_of_what_is_saved, "torch.save"),
    # Between the two renames of a checkpoint; before and after a new directory replaces the old one.
    "rename": (after, "pathlib.Path.replace"),
    "unexchanged": (before, "cifar_pipeline.utils.atomic._swap_dirs"),
    "exchanged": (after, "cifar_pipeline.utils.atomic._swap_dirs"),
    # After MLflow has stored an epoch's metrics, before that, and when they are written but not committed.
    "log": (after, "mlflow.MlflowClient.log_batch"),
    "unsent log": (before, "mlflow.MlflowClient.log_batch"),
    "half a transaction": (before, "sqlalchemy.orm.Session.commit"),
    # After a model is exported but before the training counts as finished; while the result is copied to models/.
    "export": (after, "cifar_pipeline.inference.onnx_export.save_model"),
    "copy": (after, "shutil.copystat"),
    "raw array": (after, "numpy.save"),
    "array": (after, "cifar_pipeline.data.preprocessing._write"),
    "features": (before, "cifar_pipeline.training.features.head_input"),
    "figure": (after, "matplotlib.figure.Figure.savefig"),
}


def record_steps() -> None:
    """Write each step of the training, as `epoch:batch`, to steps.txt."""
    from cifar_pipeline.training.compiled.engine import CompiledClassifier
    from cifar_pipeline.training.module import Classifier

    steps_file = os.open(STEPS_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for cls in (Classifier, CompiledClassifier):
        original = cls.__dict__["training_step"]

        def step(self: Any, batch: Any, index: int, original: Any = original) -> Any:
            os.write(steps_file, f"{self.current_epoch}:{index}\n".encode())
            return original(self, batch, index)

        cls.training_step = step  # type: ignore[method-assign]


sys.argv = sys.argv[3:]
sys.path[0] = str(Path(SCRIPT).resolve().parent)
if EVENT == "start-up":
    timer = threading.Timer(NUMBER, die)
    timer.daemon = True
    timer.start()
elif EVENT in EVENTS:
    kill_at, path = EVENTS[EVENT]
    kill_at(path, Countdown())
if SCRIPT.endswith("train.py") and EVENT != "start-up":
    record_steps()
runpy.run_path(SCRIPT, run_name="__main__")
