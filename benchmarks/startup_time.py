"""Measure the start of src/train.py up to its first optimizer step, by phase.

    python benchmarks/startup_time.py rerun=true

Imports what src/train.py imports, records when certain functions are entered, runs the script, and exits after the
first step.
"""

import environment  # noqa: F401

# isort: split

import os
import runpy
import sys
from collections.abc import Callable
from typing import Any

from common import print_result, since_start

SCRIPT = "src/train.py"
marks: dict[str, float] = {}


def mark_end(phase: str) -> None:
    """Record the end of a phase, once."""
    marks.setdefault(phase, since_start())


def mark_at_call(module: Any, name: str, phase: str) -> None:
    """Wrap `module.name` to record at its call that `phase` has ended."""
    original: Callable[..., Any] = getattr(module, name)

    def function(*arguments: Any, **options: Any) -> Any:
        mark_end(phase)
        return original(*arguments, **options)

    setattr(module, name, function)


def finish(*_: Any) -> None:
    """Print the result and end the process."""
    mark_end("to the first step in Lightning")
    ends = list(marks.values())
    parts = {phase: round(end - start, 2) for phase, end, start in zip(marks, ends, [0.0, *ends], strict=False)}
    print()
    print_result(seconds=ends[-1], parts=parts)
    os._exit(0)


mark_end("Python")
from torch.optim import optimizer as torch_optimizer  # noqa: E402

mark_end("import torch")
import lightning.pytorch  # noqa: E402, F401

mark_end("import Lightning")
import mlflow  # noqa: E402, F401

from cifar_pipeline.tracking import runs  # noqa: E402

mark_end("import MLflow")
from cifar_pipeline.data import dataset  # noqa: E402
from cifar_pipeline.training import trainer  # noqa: E402

mark_at_call(dataset, "require_matching_config", "other imports, configuration, opening the data")
mark_at_call(runs, "training_run", "building network and batches")
mark_at_call(trainer, "fit", "MLflow run")
torch_optimizer.register_optimizer_step_post_hook(finish)
sys.argv = [SCRIPT, *sys.argv[1:]]
sys.path[0] = os.path.dirname(os.path.abspath(SCRIPT))  # noqa: PTH100, PTH120
runpy.run_path(SCRIPT, run_name="__main__")
