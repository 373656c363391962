"""A multirun in the process that started it: after the last job comes the comparison, and an exit code."""

import sys
from collections.abc import Callable
from pathlib import Path

from cifar_pipeline.console import complain

_parent = ""
_folder = Path()


def started(parent: str, folder: Path) -> None:
    """Remember the parent run and the folder of the multirun. Called by the callback."""
    global _parent, _folder
    _parent, _folder = parent, folder


def concluded(launch: Callable[[], None]) -> None:
    """Launch a stage; after a multirun, compare its points and end the process with 1 where any of them failed.

    A job whose process was killed ends a multirun, not its comparison.
    """
    killed = False
    try:
        launch()
    except Exception as error:
        # joblib's, which need not be installed.
        if type(error).__name__ != "TerminatedWorkerError":
            raise
        killed = True
    if not _parent:
        return
    from cifar_pipeline.sweeps.conclusion import conclude

    all_well = conclude(_parent, _folder)
    if killed:
        complain("A job's process was killed: the same command typed again does the rest.")
    if killed or not all_well:
        sys.exit(1)
