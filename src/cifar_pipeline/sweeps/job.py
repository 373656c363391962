"""A job of a sweep: which point it is, and how it fails without stopping the others."""

import functools
import os
import traceback
from typing import Any

from omegaconf import DictConfig

from cifar_pipeline.config.start import Stage, output_root
from cifar_pipeline.console import Refusal, complain, say, speak_as
from cifar_pipeline.faults import fault_sentence
from cifar_pipeline.files import whole_file
from cifar_pipeline.interruption import end_with, listen
from cifar_pipeline.redaction import clean, guard_output
from cifar_pipeline.sweeps.basis import Basis
from cifar_pipeline.tracking.points import Point

_point: Point | None = None
_basis: Basis | None = None


def begin(point: Point, sweep_process: int, basis: Basis | None = None) -> None:
    """Let this process know which point it is at, and what the sweep began with.

    Called by the callback, in the job's process. A process of its own ends with that of the sweep, if it was started on
    the same machine.
    """
    global _point, _basis
    _point, _basis = point, basis
    guard_output()
    if os.getpid() != sweep_process:
        listen()
        end_with(sweep_process)


def current_point() -> Point | None:
    """The point that this process is at; none outside a multirun."""
    return _point


def require_val(images: int) -> None:
    """Refuse a sweep that has nothing to choose by: the test part is never used for that."""
    if images == 0:
        raise Refusal("data.val_fraction=0 leaves a sweep nothing to choose by: write a fraction such as 0.1.")


def finished_value(point: Point, identity: str) -> float | None:
    """The validation accuracy of the run that has this identity, if it has finished; the point is linked to it.

    In a rerun of the sweep, only a run that has finished in it counts.
    """
    from cifar_pipeline.tracking.runs import finished_run
    from cifar_pipeline.tracking.sweeps import note_point

    run = finished_run(identity, point.rerun)
    if run is None:
        return None
    note_point(point, run.info.run_id)
    more = "this rerun of the sweep trained it already" if point.rerun else "`rerun=true` trains it again"
    say(f"finished before (run {run.info.run_name}); {more}")
    return float(run.data.metrics["val/accuracy"])


def surviving(stage: Stage) -> Stage:
    """In a multirun, note a failure on the point and tell the search that there is no value: the other jobs go on.

    Optuna's sweeper takes what is no number for a failed trial, but ends with an error for NaN.
    """

    @functools.wraps(stage)
    def run(config: DictConfig) -> Any:
        # Asked anew in the job's process: a launcher copies this function's own names as they were before.
        point = current_point()
        if point is None:
            return stage(config)
        from cifar_pipeline.tracking.sweeps import fail_point, note_point

        speak_as(f"[{point.number}] ")
        say(f"{point.place}: {' '.join(point.overrides)}")
        note_point(point)
        try:
            _require_same_basis(config)
            return stage(config)
        except Exception as error:
            reason = failure_sentence(error)
            fail_point(point, reason)
            complain(reason)
            return None
        finally:
            speak_as("")

    return run


def _require_same_basis(config: DictConfig) -> None:
    if _basis is not None:
        _basis.require_same(config)


def failure_sentence(error: Exception) -> str:
    """Why a job failed, in a sentence; the traceback of what is a bug goes to error.txt in the job's folder."""
    if isinstance(error, Refusal):
        return str(error)
    if fault := fault_sentence(error):
        return fault
    path = output_root() / "error.txt"
    with whole_file(path) as part:
        part.write_text(clean("".join(traceback.format_exception(error))), encoding="utf-8")
    return f"{type(error).__name__}: {' '.join(str(error).split())} (the traceback: {path})"
