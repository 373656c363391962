"""Side: src/train.py itself, up to its first optimizer step; answers where the time since the process began went.

    python benchmarks/first_step.py rerun=true

It imports what src/train.py imports, notes when certain functions are entered, runs the script, and ends the process
after the first step. Nothing is left out, nothing added but the notes.
"""

import os
import runpy
import sys
from collections.abc import Callable
from typing import Any

from side import answer, since_start

SCRIPT = "src/train.py"
marks: dict[str, float] = {}


def note(what: str) -> None:
    """What ends now; the first time counts."""
    marks.setdefault(what, since_start())


def noted(module: Any, name: str, what: str) -> None:
    """Have `module`.`name` note at each call that `what` has ended."""
    original: Callable[..., Any] = getattr(module, name)

    def function(*arguments: Any, **options: Any) -> Any:
        note(what)
        return original(*arguments, **options)

    setattr(module, name, function)


def end(*_: Any) -> None:
    """Say it, and let go of everything at once."""
    note("to the first step in Lightning")
    ends = list(marks.values())
    parts = {what: round(end - start, 2) for what, end, start in zip(marks, ends, [0.0, *ends], strict=False)}
    print()
    answer(seconds=ends[-1], parts=parts)
    os._exit(0)


note("Python")
from torch.optim import optimizer as torch_optimizer  # noqa: E402

note("import torch")
import lightning.pytorch  # noqa: E402, F401

note("import Lightning")
import mlflow  # noqa: E402, F401

from cifar_pipeline.tracking import runs

note("import MLflow")
from cifar_pipeline.data import dataset
from cifar_pipeline.training import trainer

noted(dataset, "require_matching_config", "other imports, configuration, opening the data")
noted(runs, "training_run", "building network and batches")
noted(trainer, "fit", "MLflow run")
torch_optimizer.register_optimizer_step_post_hook(end)
sys.argv = [SCRIPT, *sys.argv[1:]]
sys.path[0] = os.path.dirname(os.path.abspath(SCRIPT))  # noqa: PTH100, PTH120
runpy.run_path(SCRIPT, run_name="__main__")
